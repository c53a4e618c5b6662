"""Harvest: run models over a corpus once and store what they hold inside as a dataset.

Text is tokenized first, so the number of rows is known before a model runs. Shards are made one by one, each a
function of its pieces, by one replica or many; what is done is kept in a journal, so that a harvest that was ended
at any moment continues, to the same bytes. A harvest that is there already, made with the same settings from the same
models and corpus, is used again.
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from typing import Any

import numpy as np

from lexray.storage.errors import UserError, as_user_error, one_line
from lexray.storage.harvest.harvest_file import HarvestFile
from lexray.storage.harvest.image_corpus import ImageCorpus, open_images
from lexray.storage.harvest.journal import Journal, check_same, find_existing, read_plan, remove_beginnings
from lexray.storage.harvest.language_model import ModelFacts, inspect_model
from lexray.storage.harvest.plan import ShardTask, cut_rows, deal_pieces
from lexray.storage.harvest.pool import LocalPool, Pool, RayPool
from lexray.storage.harvest.replica import ReplicaFacts, ReplicaSettings
from lexray.storage.harvest.site_choice import check_numbers
from lexray.storage.harvest.size import PoolSize, choose_size, resources_of_cluster, resources_of_machine
from lexray.storage.harvest.text_corpus import OnTokens, TextCorpus, read_text, too_long
from lexray.storage.manifest import MANIFEST, Manifest
from lexray.storage.store import Store, reachable
from lexray.storage.writer import ShardFormat, WrittenShard, write_manifest

Corpus = TextCorpus | ImageCorpus
Progress = Callable[[int, int], None]
"""Called with the rows done so far and the rows there will be."""
Connect = Callable[[], AbstractContextManager[None]]
"""Inside what it gives, Ray is connected."""

UNCOMPARED = ("python", "threads", "model_types")
"""Parts of a run that may change while a harvest is under way; threads are kept as they were."""


def harvest(
    config: HarvestFile,
    *,
    on_progress: Progress = lambda done, total: None,
    on_tokens: OnTokens = lambda done, wanted: None,
    connect: Connect = nullcontext,
    joins: bool = False,
) -> tuple[Manifest, bool]:
    """Write the dataset that `config` describes, or find it written; the bool says that it was found.

    `connect` connects Ray, which only several replicas need, or `joins`: the work goes to the cluster it connects to.
    Raises UserError in one line for anything in `config` that cannot be done; then nothing is left, unless shards
    had been finished: those are kept, and the same file continues.
    """
    store = Store.at(config.output, config.storage)
    models = _inspect(config)
    source = {"settings": config.settings, **_model_facts(config, models)}
    found = find_existing(store, config, source)
    if found is not None:
        return found, True
    store.check_writable("output")
    with reachable("output", store.url):
        plan = read_plan(store)
    was = f"the unfinished harvest in {config.output} was started with"
    check_same(config, source, plan, was)
    corpus: Corpus
    if config.images is None:
        corpus = read_text(config, models, on_tokens)
    else:
        corpus = open_images(config.images, config.storage)
    source |= corpus.facts
    check_same(config, source, plan, was)
    threads = None if plan is None else int(plan["run"]["threads"])
    try:
        with _open_pool(config, corpus, threads=threads, connect=connect, joins=joins) as (pool, size):
            facts = pool.describe()
            types = {field.removeprefix("models."): facts.model_type for field, facts in models.items()}
            run = _describe_run(config, facts, size.threads) | {"model_types": types}
            report = corpus.report.as_dict()
            told = {"corpus": report} if report else {}
            journal = _open_journal(config, store, source | {"run": run} | told, plan)
            return _write(config, corpus, journal, pool, facts, on_progress), False
    except BaseException:
        # Shards that are finished are kept for the next time; without any, nothing is.
        with suppress(OSError):  # a store that cannot be written to may not let us clean up either
            if not store.exists(MANIFEST) and read_plan(store) is None:
                remove_beginnings(store)
        raise


def _inspect(config: HarvestFile) -> dict[str, ModelFacts]:
    """Each model's facts by its field. Raises UserError for settings that do not fit them."""
    vision = config.images is not None
    models = {field: inspect_model(name, field=field, vision=vision) for field, name in config.named_models.items()}
    for field, facts in models.items():
        for name, site in config.sites_of(field).items():
            check_numbers(name, site, facts.num_layers)
        if facts.max_context is not None and config.context_length > facts.max_context:
            raise too_long(config, facts.max_context)
    return models


def _model_facts(config: HarvestFile, models: dict[str, ModelFacts]) -> dict[str, Any]:
    facts = {field: {"num_layers": m.num_layers, "fingerprint": m.fingerprint} for field, m in models.items()}
    if config.models is None:
        return facts
    return {"models": {field.removeprefix("models."): fact for field, fact in facts.items()}}


@contextmanager
def _open_pool(
    config: HarvestFile, corpus: Corpus, *, threads: int | None, connect: Connect, joins: bool
) -> Iterator[tuple[Pool, PoolSize]]:
    size = None if joins else choose_size(config, resources_of_machine(), threads=threads, joins=False)
    with ExitStack() as stack:
        if size is None or size.workers > 1:
            stack.enter_context(connect())
        size = size or choose_size(config, resources_of_cluster(), threads=threads, joins=True)
        settings = ReplicaSettings(
            config=config,
            threads=size.threads,
            device="cuda" if size.gpus else "cpu",
            first=corpus.select(np.arange(min(corpus.first_pieces, len(corpus)))),
            pad_id=corpus.pad_id,
            dropped_ids=corpus.dropped_ids,
        )
        pool = RayPool(settings=settings, size=size) if joins or size.workers > 1 else LocalPool(settings=settings)
        stack.callback(pool.close)
        yield pool, size


def _describe_run(config: HarvestFile, facts: ReplicaFacts, threads: int) -> dict[str, Any]:
    """What does not decide whether a finished dataset is used again, but may decide the last bits of its rows."""
    libraries = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "tokenizers")}
    dtypes: Any = {field.removeprefix("models."): dtype for field, dtype in facts.compute_dtypes.items()}
    compute = {"compute_dtype": dtypes if config.models else dtypes["model"], "device": facts.device}
    return {**libraries, **compute, "python": platform.python_version(), "threads": threads}


def _open_journal(config: HarvestFile, store: Store, new: dict[str, Any], plan: dict[str, Any] | None) -> Journal:
    """The journal to continue, or a new one. Raises UserError when what runs now would make other bytes."""
    if plan is not None:
        now, before = ({k: v for k, v in part["run"].items() if k not in UNCOMPARED} for part in (new, plan))
        check_same(config, {"run": now}, {"run": before}, f"the unfinished harvest in {config.output} was started with")
        return Journal(store=store, plan=plan)
    journal = Journal(store=store, plan=new)
    with _storing(store):
        journal.begin()
    return journal


def _storing(store: Store) -> AbstractContextManager[None]:
    """Turn a store that takes no more into one line for the user."""
    advice = "run the same command again to continue when that is mended"
    return as_user_error(lambda error: f"output: cannot write to {store.url} ({one_line(error)}); {advice}", OSError)


def _write(
    config: HarvestFile, corpus: Corpus, journal: Journal, pool: Pool, facts: ReplicaFacts, on_progress: Progress
) -> Manifest:
    """Make the shards that are missing, then the manifest; the journal goes last."""
    rows = cut_rows(corpus.rows_of_pieces(facts), config.max_rows)
    shards = deal_pieces(rows, config.shard_rows, spread=config.spread)
    with _storing(journal.store):
        written = journal.written(range(len(shards)))
        bar = _Bar(on_progress, int(rows.sum()), sum(part.shard.rows for part in written.values()))
        missing = [number for number in range(len(shards)) if number not in written]

        def make_task(number: int) -> ShardTask:
            return ShardTask(number=number, rows=rows[shards[number]], pieces=corpus.select(shards[number]))

        for number, part in pool.write(missing, make_task, bar.show):
            _check_visible(journal.store, part)
            journal.add(number, part)
            written[number] = part
            bar.finish(part.shard.rows)
        journal.clean_up(len(written))
        manifest = write_manifest(
            journal.store,
            ShardFormat(sites=facts.widths, dtype=config.dtype, chunk_rows=config.chunk_rows),
            [written[number] for number in range(len(shards))],
            sources=facts.sources,
            special_token_ids=corpus.special_ids,
            provenance=journal.plan,
        )
        journal.close()
        return manifest


def _check_visible(store: Store, part: WrittenShard) -> None:
    """Raise UserError when a worker on another machine has written to a folder of its own."""
    if store.local_path is not None and store.size(part.shard.file) != part.shard.bytes:
        raise UserError(
            f"output: {part.shard.file}, written by a worker, is not in {store.url} here; "
            "give a folder or url that all machines share"
        )


class _Bar:
    """Rows done, told so that they never go back: a replica that dies takes rows with it that were counted."""

    def __init__(self, on_progress: Progress, total: int, finished: int) -> None:
        self._on_progress, self._total, self._finished, self._shown = on_progress, total, finished, finished
        on_progress(finished, total)

    def finish(self, rows: int) -> None:
        self._finished += rows
        self.show(0)

    def show(self, in_progress: int) -> None:
        self._shown = max(self._shown, min(self._finished + in_progress, self._total))
        self._on_progress(self._shown, self._total)
