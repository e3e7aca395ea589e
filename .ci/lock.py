"""Reads pip's report of an installation and prints a line a package: name, version, sha256 of the file that was chosen.

No address is written, so any index that holds the same files will do. Used by `make lock`.
"""

import json
import re
import sys


def lines(report: dict) -> list[str]:
    found = []
    for item in report["install"]:
        about, archive = item["metadata"], item["download_info"].get("archive_info")
        if archive is not None:  # the project itself is a folder
            name = re.sub(r"[-_.]+", "-", about["name"]).lower()
            found.append(f"{name}=={about['version']} --hash=sha256:{archive['hashes']['sha256']}")
    return sorted(found)


if __name__ == "__main__":
    report = json.load(sys.stdin)
    at = report["environment"]
    print(f"# What `make` installs for Python {at['python_version']} on {at['sys_platform']} {at['platform_machine']}.")
    print("# Written by `make lock`; CONTRIBUTING.md says what it is for.")
    print("\n".join(lines(report)))
