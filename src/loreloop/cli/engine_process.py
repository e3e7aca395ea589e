"""An engine process, as the supervisor starts it: `python -m loreloop.cli.engine_process PLAN MODEL REPLICA PARENT`."""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable

    from loreloop.engine.contract import Constrain, Engine
    from loreloop.engine.local import LocalEngine
    from loreloop.host.link import EngineLink
    from loreloop.host.server_plan import ServerPlan
    from loreloop.parallel.place import Place
    from loreloop.protocol.link import EngineInfo

LOG = logging.getLogger("loreloop.engine_process")


def main(plan_file: str, base_model: str, replica: int, parent_pid: int) -> None:
    """Runs one engine until the link ends or a signal comes; exit code 78 where its settings cannot work. `replica`
    0 is the one that trains, the others only sample."""
    from loreloop.host.orphans import die_with_parent

    die_with_parent(parent_pid)  # before libraries that take seconds to load
    from loreloop.formats.checksums import check_weights_unchanged
    from loreloop.host.link import EngineLink, first_link
    from loreloop.host.log import speak_to_supervisor
    from loreloop.host.server_plan import read_plan
    from loreloop.host.starts import say_up
    from loreloop.host.supervisor import CANNOT_START
    from loreloop.outside.outside_engine import SamplerLost
    from loreloop.protocol.errors import UserError
    from loreloop.protocol.link import Hello, Leaving
    from loreloop.scheduler.loop import Scheduler
    from loreloop.text.answers import parts_of
    from loreloop.text.stops import StopMatcher
    from loreloop.text.tokenizer import TextTokenizer

    speak_to_supervisor()
    plan = read_plan(plan_file)
    folder, data = Path(plan.folders[base_model]), plan.config.data_path
    try:
        if plan.config.engine.verify_weights:
            check_weights_unchanged(folder)
        tokenizer = TextTokenizer(folder)
        is_outside = replica > plan.config.engine.replicas
        if is_outside:
            engine = outside_engine(plan, base_model, replica)
        else:
            engine = own_engine(plan, plan_file, base_model, replica)
    except UserError as error:
        LOG.error("%s", error.message)
        sys.exit(CANNOT_START)
    link = first_link(EngineLink, plan.socket)
    _heed_signals(link)
    link.send(Hello(base_model, engine.info, replica, is_outside))
    scheduler = Scheduler(
        engine,
        link.inbox,
        link.send,
        lambda params: StopMatcher(tokenizer, params.stop_strings, parts_of(params.thoughts)),
        plan.config.engine,
        data / "journal" / "snapshots" / _file_name(base_model),
        ready=lambda: say_up(plan.up_folder, os.getpid()),
    )
    try:
        scheduler.run()
    except SamplerLost as lost:
        # None of its samples is to blame, so this is no death; whoever started this process starts it again.
        LOG.error("%s; its samples go to others", lost)
        link.send(Leaving())
        link.close()
        sys.exit(1)
    link.close()
    _end_at_once()


def own_engine(plan: ServerPlan, plan_file: str, base_model: str, replica: int) -> Engine:
    """The engine that computes here, with the further processes of its mesh started. UserError as of `engine_of`."""
    from loreloop.cli.ranks import watch_of
    from loreloop.cli.ray_ranks import first_place
    from loreloop.engine.leading import LeadingEngine
    from loreloop.host.silence import Afar

    afar = Afar()
    place = first_place(plan, plan_file, base_model, replica, afar)
    local = engine_of(plan, base_model, place, replica)
    LOG.info("%s computes in %s", base_model, local.info.precision)
    if place.n_ranks == 1:
        return local
    return LeadingEngine(local, watch_of(plan.config.engine, os.getpid(), 0, afar).amid)


def engine_of(plan: ServerPlan, base_model: str, place: Place, replica: int = 0) -> LocalEngine:
    """The engine of a base model at a place of its mesh. UserError where its settings or its folder cannot work."""
    import torch

    from loreloop.engine.local import LocalEngine
    from loreloop.protocol.syncing import promise
    from loreloop.store.files import SECRET, read_secret
    from loreloop.text.tokenizer import TextTokenizer

    promise(plan.config.durability)
    if replica and plan.config.engine.device != "cpu" and torch.cuda.is_available():
        torch.cuda.set_device(replica % torch.cuda.device_count())  # the training engine has the first one
    folder = Path(plan.folders[base_model])
    # Each empties its own folder at its start, so none may have that of another engine.
    spilled = plan.run_folder / (f"spilled-replica-{replica}" if replica else "spilled")
    work_dir = spilled / _file_name(base_model)
    return LocalEngine(
        plan.config.engine,
        base_model,
        folder,
        work_dir / str(place.rank) if place.n_ranks > 1 else work_dir,
        _grammars_of(folder),
        secret=read_secret(plan.config.data_path / SECRET),
        ends=TextTokenizer(folder).end_ids,
        place=place,
    )


def outside_engine(plan: ServerPlan, base_model: str, replica: int) -> Engine:
    """The face of a sampler outside. BadRequest where it serves nothing, or another base; exits where it does not
    answer, and is tried again by whoever started this process."""
    import hashlib

    from loreloop.cli.outside_base import check_base
    from loreloop.formats.configuration import read_spec
    from loreloop.outside.outside_engine import OutsideEngine, SamplerLost
    from loreloop.outside.server import SamplerServer
    from loreloop.protocol.errors import Unavailable
    from loreloop.protocol.link import EngineInfo
    from loreloop.store.files import SECRET, read_secret
    from loreloop.text.tokenizer import TextTokenizer

    config, folder = plan.config.engine, Path(plan.folders[base_model])
    spec = read_spec(folder)
    info = EngineInfo(
        base_model=base_model,
        folder=str(folder),
        vocab_size=spec.vocab_size,
        context_window=spec.context_window,
        eos_token_ids=tuple(TextTokenizer(folder).end_ids),
        max_lora_rank=config.max_lora_rank,
        n_threads=0,
    )
    number = replica - config.replicas - 1
    url = config.samplers[number]
    # The same at every start, and another one for each server of ours and each engine that shares a sampler.
    secret = read_secret(plan.config.data_path / SECRET)
    owner = hashlib.sha256(b"%s %d" % (secret, config.samplers[:number].count(url))).hexdigest()[:12]
    limits = {"max_resident": config.resident_revisions, "max_running": config.max_running_samples}
    try:
        server = SamplerServer(url)
        check_base(server, folder, spec, plan.hub_ids.get(base_model, ""))
        engine = OutsideEngine(server, info, owner=owner, **limits)
    except (Unavailable, SamplerLost) as error:
        LOG.error("%s", error)
        sys.exit(1)
    LOG.info("%s is drawn by the sampler at %s", base_model, url)
    return engine


def _file_name(base_model: str) -> str:
    """The name becomes a folder's name, and may be a path."""
    return base_model.replace("/", "--")


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
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
