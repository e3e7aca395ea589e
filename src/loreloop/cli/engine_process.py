"""An engine process, as the supervisor starts it: `python -m loreloop.cli.engine_process PLAN MODEL PARENT LIFE`."""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable

    from loreloop.engine.contract import Constrain
    from loreloop.host.link import EngineLink
    from loreloop.protocol.link import EngineInfo

LOG = logging.getLogger("loreloop.engine_process")


def main(plan_file: str, base_model: str, parent_pid: int) -> None:
    """Runs one engine until the link ends or a signal comes; exit code 78 where its settings cannot work."""
    from loreloop.host.orphans import die_with_parent

    die_with_parent(parent_pid)  # before libraries that take seconds to load
    from loreloop.engine.local import LocalEngine
    from loreloop.formats.checksums import check_weights_unchanged
    from loreloop.host.link import EngineLink, first_link
    from loreloop.host.log import speak_to_supervisor
    from loreloop.host.server_plan import read_plan
    from loreloop.host.starts import say_up
    from loreloop.host.supervisor import CANNOT_START
    from loreloop.protocol.errors import UserError
    from loreloop.protocol.link import Hello
    from loreloop.scheduler.loop import Scheduler
    from loreloop.store.files import SECRET, read_secret
    from loreloop.text.answers import parts_of
    from loreloop.text.stops import StopMatcher
    from loreloop.text.tokenizer import TextTokenizer

    speak_to_supervisor()
    plan = read_plan(plan_file)
    folder, data = Path(plan.folders[base_model]), plan.config.data_path
    # The name becomes a folder's name, and may be a path.
    place = base_model.replace("/", "--")
    try:
        secret, work_dir = read_secret(data / SECRET), plan.run_folder / "spilled" / place
        if plan.config.engine.verify_weights:
            check_weights_unchanged(folder)
        tokenizer = TextTokenizer(folder)
        engine = LocalEngine(
            plan.config.engine,
            base_model,
            folder,
            work_dir,
            _grammars_of(folder),
            secret=secret,
            ends=tokenizer.end_ids,
        )
    except UserError as error:
        LOG.error("%s", error.message)
        sys.exit(CANNOT_START)
    LOG.info("%s computes in %s", base_model, engine.info.precision)
    link = first_link(EngineLink, plan.socket)
    _heed_signals(link)
    link.send(Hello(base_model, engine.info))
    scheduler = Scheduler(
        engine,
        link.inbox,
        link.send,
        lambda params: StopMatcher(tokenizer, params.stop_strings, parts_of(params.thoughts)),
        plan.config.engine,
        data / "journal" / "snapshots" / place,
        ready=lambda: say_up(plan.up_folder, os.getpid()),
    )
    scheduler.run()
    link.close()
    _end_at_once()


def _heed_signals(link: EngineLink) -> None:
    from loreloop.protocol.link import Shutdown

    # The signal becomes a message like any other, so the engine ends between two steps.
    signal.signal(signal.SIGTERM, lambda *_: link.inbox.put(Shutdown()))
    # Ctrl-C in a terminal reaches all processes; only the supervisor decides on the end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _grammars_of(folder: Path) -> Callable[[EngineInfo], Constrain]:
    """What prepares a model's grammars; a tokenizer that they cannot be read over costs requests for them alone."""
    from loreloop.engine.sampling.sampler import refuse
    from loreloop.text.grammars.grammar import Grammars

    def grammars(info: EngineInfo) -> Constrain:
        try:
            return Grammars.of(folder, info.vocab_size, info.eos_token_ids).constraint
        except (ValueError, TypeError, RuntimeError) as error:
            LOG.warning("no grammars for the model in %s: its tokenizer cannot be read for them (%s)", folder, error)
            return refuse

    return grammars


def _end_at_once() -> NoReturn:
    """All is written; the interpreter's own end, with a model's memory, takes seconds on a busy machine."""
    LOG.info("ended")
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
