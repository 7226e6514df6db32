"""The road, command by command: what `embedsvc import | train | eval | export | publish | gate` do
and print."""

import json
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from embedsvc.config import (
    EvalConfig,
    GateConfig,
    ModelConfig,
    OutputConfig,
    PublishConfig,
    TrainConfig,
)
from partitions import config as settings_file
from partitions import durable, import_plan, importer, notes, provenance, releases
from partitions.checkpoint import Checkpoint
from partitions.commands import print_report
from partitions.config import GraphConfig, RunConfig, Settings
from partitions.errors import ConfigError, DataError, did_you_mean
from partitions.gate.anomalies import Refused
from partitions.graph import Graph
from partitions.graph_writer import WRITING
from partitions.importer import ImportReport
from partitions.memory import forget_peak, peak_bytes
from partitions.progress import rows_bar
from partitions.published import PublishedVersion
from partitions.validation import SCHEMA

if TYPE_CHECKING:
    from embedsvc.evaluation.list_gate import ListGate
    from embedsvc.evaluation.nodes import Labels
    from embedsvc.evaluation.served import Client
    from embedsvc.release_road import Releases
    from embedsvc.trained import Trained
    from embedsvc.training.trainer import TrainReport

EVALUATION = "evaluation.json"
EVALUATION_OF_SOME = "evaluation-of-some.json"  # edges, beside that of all
EVALUATION_THROUGH = "evaluation-through.json"  # a server, which is not the checkpoint's own


class Road:
    def __init__(self, settings: Settings, *, quiet: bool = False) -> None:
        self.settings = settings
        self.folders = settings.table("run", RunConfig)
        self.console = Console(quiet=quiet)

    @staticmethod
    def open(config: Path, overrides: list[str] | None) -> "Road":
        return Road(settings_file.load(config, overrides or []))

    def _say(self, line: str) -> None:
        """One line, however long: a pipe has no width."""
        self.console.print(line, soft_wrap=True, markup=False)

    def import_graph(
        self,
        *,
        replace: bool = False,
        append: bool = False,
        accept: bool = False,
        as_of: int | None = None,
        if_needed: bool = False,
    ) -> ImportReport | None:
        """None where `if_needed` and nothing was."""
        config = self.settings.table("graph", GraphConfig)
        path = self.folders.graph
        if "*" not in config.relations:
            self._check_relations(list(config.relations))
        durable.recover_folder(path)
        notes.settle(path)
        if replace and append:
            raise ConfigError("--append adds to a graph, --replace makes it anew: choose one.")
        if path.exists() and not replace and not append:
            differs = provenance.difference(config, path)
            if if_needed and differs is None:
                self._say(f"import: {path} is up to date")
                return None
            why = differs or "nothing changed since it was made"
            raise DataError(
                f"{path} already holds a graph ({why}). Add --append to embedsvc import to add new "
                "input files, --replace to make it anew (what was trained on it must then be "
                "trained again), or choose another [run] dir."
            )
        start = time.perf_counter()
        with ExitStack() as stack:
            # Nobody may train on a graph while it is replaced.
            stack.enter_context(durable.only_writer(self.folders.dir, "importing into"))
            stack.enter_context(durable.only_writer(self.folders.checkpoint, "importing for"))
            num_rows = self._plan_import(config, Graph(path) if append else None)
            bar = stack.enter_context(rows_bar(self.console))
            reading = bar.add_task("import", total=num_rows)
            writing = bar.add_task(WRITING, total=num_rows, visible=False)

            def progress(name: str, rows: int) -> None:
                if name == WRITING:
                    bar.update(writing, advance=rows, visible=True)
                else:
                    bar.update(reading, advance=rows, description=f"import {name}")

            try:
                report = importer.import_graph(
                    config, path, progress, append=append, accept=accept, as_of=as_of
                )
            except Refused as refused:
                print_report(self.console, refused.report, self.folders.dir / SCHEMA)
                raise
        self._print_import(report, time.perf_counter() - start)
        if report.gate is not None:
            print_report(self.console, report.gate, self.folders.dir / SCHEMA, accept=accept)
        return report

    def _plan_import(self, config: GraphConfig, base: Graph | None) -> int | None:
        """Say what memory the import takes, and refuse what can't fit. Returns about how many rows
        there are; own buckets are copied file by file and need no plan."""
        if config.own_buckets is not None:
            return None
        plan = import_plan.plan_import(config, base=base)
        self._say(f"import: {plan}")
        if warning := import_plan.check_memory(plan, config.memory_mb):
            self._say(f"import: {warning}")
        return plan.num_rows

    def _print_import(self, report: ImportReport, seconds: float) -> None:
        edges = sum(report.num_edges.values())
        self._say(
            f"import: {edges:,} edges "
            f"({', '.join(f'{n:,} {split}' for split, n in report.num_edges.items() if n)}), "
            f"{sum(report.num_entities.values()):,} entities "
            f"({', '.join(f'{n:,} {name}' for name, n in report.num_entities.items())}) "
            f"in {seconds:.1f} s"
        )
        if report.cuts is not None:
            self._say(self._cuts_line(report))
        if report.resumed:
            self._say("import: went on from where an earlier run was broken off")
        if report.dropped_edges:
            dropped = _counted(report.dropped_edges, "edge")
            self._say(f"import: dropped {dropped} (duplicates, self-loops)")
        for name, count in report.untrained_entities.items():
            if count:
                self._say(f"import: {count:,} {name} entities have no training edge")
        if report.skipped_rows:
            rows = _counted(report.skipped_rows, "bad row")
            self._say(f"import: skipped {rows}, kept in {report.skipped_file}")
        for name, count in report.unmatched_attributes.items():
            if count:
                self._say(f"import: {count:,} {name} attributes belong to no edge")
        for name, count in report.featureless_entities.items():
            if count:
                self._say(f"import: {count:,} {name} entities have no features: their vector is 0")
        for name, count in report.changed_bags.items():
            if count:
                self._say(
                    f"import: {count:,} {name} entities have other features now; they keep those "
                    "they came with, until an import with --replace"
                )

    def _cuts_line(self, report: ImportReport) -> str:
        if report.cuts_kept:
            return (
                f"import: the graph's cuts in time stay: {report.cuts}. Later edges do not train: "
                "graph.holdout.test_after (and valid_after) in place of shares moves the cuts"
            )
        unset = self.settings.table("graph", GraphConfig).holdout.by is None
        other = '; graph.holdout.by = "edge" draws them at random instead' if unset else ""
        return f"import: held out by time: {report.cuts}{other}"

    def plan(self) -> None:
        from embedsvc.training.plan import advise

        graph = self._graph()
        if (output := self._output()) is not None:
            from embedsvc.training.output_plan import plan_output

            config = self.settings.table("train", TrainConfig)
            self._say(str(plan_output(graph, output, config, self.folders.checkpoint)))
            return
        model, train = (
            self.settings.table("model", ModelConfig),
            self.settings.table("train", TrainConfig),
        )
        for line in advise(graph, model, train):
            self._say(line)

    def train(self) -> "TrainReport":
        from embedsvc.training import report as page
        from embedsvc.training.trainer import train

        graph, model = self._graph(), self.settings.table("model", ModelConfig)
        config, output = self.settings.table("train", TrainConfig), self._output()
        self._check_relations([relation.name for relation in graph.relations])
        forget_peak()  # of an import before it, in embedsvc run
        noun = "edges" if output is None else "examples"
        if output is None:
            report = train(graph, self.folders.checkpoint, model, config)
        else:
            from embedsvc.training import outputs
            from embedsvc.training.events import relation_of

            self._check_learnt(relation_of(graph, output).name)
            report = outputs.train(graph, self.folders.checkpoint, output, config)
        if report.best_epoch is not None:
            stopped = ", stopped early" if report.stopped_early else ""
            self._say(f"train: best after epoch {report.best_epoch}{stopped}")
        if not report.num_edges:
            self._say(f"train: nothing left to do{self._untrained_growth(graph)}")
            return report
        speed = f"{report.num_edges / report.train_s:,.0f} {noun}/s"
        tables = (
            f", {report.table_reads + report.table_writes} table reads and writes, "
            f"waited {report.wait_s:.1f} s for them"
        )
        self._say(
            f"train: {report.num_edges:,} {noun} in {report.train_s:.1f} s ({speed}), "
            f"last loss {report.loss:.4f}{tables if output is None else ''}"
        )
        memory = (
            f"{peak_bytes() / 1e6:,.0f} MB at most, planned {report.planned_bytes / 1e6:,.0f} MB"
        )
        entities = sum(map(graph.num_entities, graph.entity_types))
        facts = {
            "graph": f"{graph.num_edges('train'):,} training edges, {entities:,} entities, "
            f"{len(graph.relations):,} relations, {len(graph.buckets('train')):,} buckets",
            "last run": f"{report.num_edges:,} {noun} in {report.train_s:,.1f} s, {speed}",
            "memory": memory,
        }
        path = page.write(self.folders.checkpoint, f"Training of {self.folders.dir}", facts)
        self._say(f"train: memory {memory}; curves in {path}")
        return report

    def _untrained_growth(self, graph: Graph) -> str:
        """What to do where the graph has grown since it was trained."""
        manifest = Checkpoint(self.folders.checkpoint).read_manifest()
        if manifest.graph_digest == graph.digest:
            return ""
        known = graph.manifest.ancestors.index(manifest.graph_digest) + 1
        grown = sum(batch["edges"]["train"] for batch in graph.manifest.batches[known:])
        return (
            f" in train.epochs = {manifest.progress.epoch}, but the graph has {grown:,} training "
            "edges more than then. Raise train.epochs to learn them (train.only_changed = true "
            "visits only their buckets)."
        )

    def evaluate(self, *, if_needed: bool = False, through: str | None = None) -> dict[str, Any]:
        """through: URL of a server whose lists are held to the checkpoint's; these alone."""
        from embedsvc.eval_road import Evaluation

        config = self.settings.table("eval", EvalConfig)
        trained = self._trained().before(config.split)
        settings = config.model_dump(mode="json")
        labels = self._labels(config, trained) if through is None else None
        if labels is not None:
            settings["classify"]["sha256"] = labels.digest
        for name in (EVALUATION, EVALUATION_OF_SOME) if if_needed else ():
            found = self._metrics_of(trained.digest, name)
            same = found.get("settings") == settings and found.get("graph") == trained.graph.digest
            if same and self._has_page(name, config):
                self._say(f"eval: {self.folders.checkpoint / name} is up to date")
                return found
        self._check_relations([relation.name for relation in trained.graph.relations])
        client = None if through is None else self._connect(through, config, trained)
        self._say_what_is_left_out("eval", trained)
        recommend = config.recommend
        if trained.output is not None:
            recommend = [relation.name for relation in trained.relations]  # what it is for
        start, evaluation = time.perf_counter(), Evaluation(trained, config, self.console)
        result = evaluation.result
        result |= {"checkpoint": trained.digest, "graph": trained.graph.digest}
        result |= {"settings": settings, "split": config.split}
        verdicts = []
        if config.links and client is None:
            evaluation.links()
        for relation in recommend:
            evaluation.lists(relation)
            if client is not None:
                verdicts.append(evaluation.through(client, relation, self.folders.published))
        if labels is not None and config.classify is not None:
            evaluation.classify(labels, config.classify)
        result["seconds"] = round(time.perf_counter() - start, 2)
        self._say(f"eval: {result['seconds']:.1f} s")
        path = self._place_of(trained, config, through)
        if config.report and through is None:  # first: figures that are there have their page
            evaluation.write_report(path.with_suffix(".html"), self.folders.published)
        durable.write_json(path, durable.without_nan(result))
        for verdict in filter(None, verdicts):
            self._say(f"eval: {verdict}")
        return result

    def _has_page(self, name: str, config: EvalConfig) -> bool:
        """Whether the evaluation's page is of its JSON, where there should be one."""
        from embedsvc.evaluation.report import is_of

        path = self.folders.checkpoint / name
        return not config.report or is_of(path.with_suffix(".html"), path.read_bytes())

    def _place_of(self, trained: "Trained", config: EvalConfig, through: str | None) -> Path:
        """Where an evaluation with these settings is kept; what is of some never takes the place of
        what is of all."""
        path = self.folders.checkpoint / EVALUATION
        if through is not None:
            return path.with_name(EVALUATION_THROUGH)
        if config.links and config.sampled_candidates is not None:
            path = path.with_name(EVALUATION_OF_SOME)
            self._say(f"eval: estimates go to {path}, and are neither published nor judged by")
            return path
        whole = self._metrics_of(trained.digest).get("settings")
        of_some = _is_of_some(config.model_dump(mode="json"))
        if of_some and whole is not None and not _is_of_some(whole):
            self._say(f"eval: {path} stays, which is of all edges")
            return path.with_name(EVALUATION_OF_SOME)
        return path

    def _labels(self, config: EvalConfig, trained: "Trained") -> "Labels | None":
        if config.classify is None:
            return None
        from embedsvc.evaluation.nodes import Labels

        folder = self.settings.table("graph", GraphConfig).data
        return Labels.read(config.classify, folder, trained)

    def _connect(self, through: str, config: EvalConfig, trained: "Trained") -> "Client":
        from embedsvc.evaluation.served import OfServer, connect

        if config.split != "test" or trained.output is not None:
            why = "[output] makes who asks of all events" if trained.output else "so do versions"
            raise ConfigError(
                "--through needs eval.split = test and a model without [output]: a server leaves "
                f"out what was seen in train and valid, and {why}."
            )
        if not config.recommend:
            raise ConfigError(
                f"{self.settings.name}: --through compares lists, and [eval] recommend names no "
                "relation to make lists of."
            )
        client = connect(through)
        for relation in config.recommend:  # before the ranking, which may take long
            OfServer(client, trained.graph, relation).try_one()
        return client

    def recommend_all(self, relation: str | None, to: Path, k: int, *, long: bool = False) -> None:
        from embedsvc.evaluation.recommend_all import write_all
        from embedsvc.trained import Trained

        trained = Trained(self._graph(), self.folders.checkpoint)
        known = [learnt.name for learnt in trained.relations]
        if relation is None and len(known) > 1:
            raise ConfigError(f"--relation is missing: choose one of {', '.join(known)}.")
        name = known[0] if relation is None else relation
        if name not in known:
            hint = did_you_mean(name, known)
            raise ConfigError(f"The checkpoint learnt no relation {name}. {hint}")
        if not k >= 1:
            raise ConfigError(f"-k {k}: lists have at least 1 place.")
        _check_folder_of(to)
        ends = trained.graph.relations[trained.graph.relation_id(name)]
        if k > (num_rhs := trained.graph.num_entities(ends.rhs)):
            self._say(f"recommend-all: lists of {num_rhs:,}, as there are no more {ends.rhs}")
            k = num_rhs
        lhs_type = ends.lhs
        num, start = trained.graph.num_entities(lhs_type), time.perf_counter()
        with rows_bar(self.console, "lists") as bar:
            task = bar.add_task(f"recommend {name}", total=num)
            empty = write_all(
                trained, name, to, k, long=long, progress=lambda n: bar.advance(task, n)
            )
        seconds = time.perf_counter() - start
        self._say(
            f"recommend-all: {to}: {num:,} lists of {k} for {name}, {to.stat().st_size / 1e6:,.1f} "
            f"MB, {seconds:.1f} s ({num / seconds:,.0f} lists/s), "
            f"{peak_bytes() / 1e6:,.0f} MB at most"
        )
        if empty:
            self._say(f"recommend-all: {empty:,} places are empty: nothing was left to list")

    def export(self, to: Path, format: str | None, entity_type: str | None) -> list[Path]:
        from embedsvc.export import export
        from embedsvc.trained import Trained

        trained = Trained(self._graph(), self.folders.checkpoint)
        start = time.perf_counter()
        with rows_bar(self.console, "vectors") as bar:
            tasks = {
                name: bar.add_task(f"export {name}", total=trained.graph.num_entities(name))
                for name in trained.entity_types
                if entity_type in (None, name)
            }
            if entity_type is None:
                self._say_what_is_left_out("export", trained)
            files = export(
                trained, to, format, entity_type, lambda name, rows: bar.advance(tasks[name], rows)
            )
        for path in files:
            self._say(f"export: {path}: {path.stat().st_size / 1e6:,.1f} MB")
        self._say(f"export: {time.perf_counter() - start:.1f} s")
        return files

    def publish(self, *, if_needed: bool = False) -> bool:
        """Whether what the settings say is live now."""
        from embedsvc.publish import publish

        trained = self._trained()
        self._say_what_is_left_out("publish", trained)
        start = time.perf_counter()
        config = self.settings.table("publish", PublishConfig)
        config.check(self.settings.name, config.OF_RANKERS, "without [ranker]")
        settings = self.settings.resolved() | trained.settings
        metrics = self._metrics_of(trained.digest)
        if if_needed and metrics:
            wanted = _Sources(settings, metrics, trained.graph.digest)
            standing = self._releases().standing(wanted.are_of)
            if standing is not None:
                return standing
        judge = self._judge()
        judge.check([relation.name for relation in trained.relations])
        manifest, decision = publish(
            trained, self.folders.published, config, settings, metrics, judge
        )
        size = sum(file.bytes for file in manifest.files.values())
        self._releases().say_published(
            manifest.version,
            decision,
            f"{size / 1e6:,.1f} MB, golden queries agree, {time.perf_counter() - start:.1f} s",
        )
        return decision.promoted

    def compare(
        self, old: str, new: str, relations: list[str], to: Path | None, *, as_json: bool = False
    ) -> None:
        from embedsvc.evaluation import compare_page
        from embedsvc.evaluation.compare import compare, opened

        root, config = self.folders.published, self.settings.table("eval", EvalConfig)
        before, after = opened(root, old), opened(root, new)
        with rows_bar(self.console, "lists") as bar:
            task = bar.add_task("compare", total=None)
            found = compare(
                *(before, after, self._graph(), config.split, config.k),
                relations or config.recommend,
                lambda answered: bar.advance(task, answered),
            )
        path = to or root / f"compare-{before.name}-{after.name}.html"
        compare_page.show(found, self.console, path, as_json=as_json)

    def gate(self, version: str | None = None, *, force: bool = False) -> bool:
        """Whether the version is live now."""
        return self._releases().gate(self._judge, version, force=force)

    def _releases(self) -> "Releases":
        from embedsvc.release_road import Releases

        keep = self.settings.table("publish", PublishConfig).keep
        return Releases(self.folders.published, self.settings.name, keep, self._say)

    def _judge(self) -> "ListGate":
        from embedsvc.evaluation.list_gate import ListGate

        return ListGate(
            self._graph(),
            self.folders.published,
            self.folders.dir / releases.USES,
            self.settings.table("gate", GateConfig),
            self.settings.table("eval", EvalConfig).recommend,
        )

    def _metrics_of(self, checkpoint: str, name: str = EVALUATION) -> dict[str, Any]:
        """The evaluation of exactly this checkpoint; empty where it was not evaluated."""
        path = self.folders.checkpoint / name
        found = durable.read_json(path, "Run embedsvc eval again.") if path.exists() else {}
        return found if found.get("checkpoint") == checkpoint else {}

    def _check_relations(self, known: list[str]) -> None:
        """ConfigError where a later step would be told of a relation that there is not."""
        for where, name in self._relations_named():
            if name not in known:
                raise ConfigError(
                    f"{self.settings.name}: {where} names the relation {name}, which the graph "
                    f"does not have. {did_you_mean(name, known)}"
                )

    def _relations_named(self) -> list[tuple[str, str]]:
        """Where a later step is told of which relation."""
        evaluation = self.settings.table("eval", EvalConfig)
        publishing = self.settings.table("publish", PublishConfig)
        named = {
            "[eval] relations": evaluation.relations,
            "[eval] recommend": evaluation.recommend,
            "[publish] recommend": publishing.recommend,
            "[gate] conditions": self._relations_gated(),
        }
        return [(where, name) for where, names in named.items() for name in names or []]

    def _relations_gated(self) -> list[str]:
        from embedsvc.evaluation.conditions import parse

        conditions = map(parse, self.settings.table("gate", GateConfig).conditions)
        return [found.relation for found in conditions if found.relation is not None]

    def _output(self) -> OutputConfig | None:
        """[output], if there is one, and nothing beside it that does not apply."""
        output = self.settings.table("output", OutputConfig)
        if output.kind is None:
            return None
        from embedsvc.training.outputs import check_covered

        model = self.settings.table("model", ModelConfig)
        check_covered(self.settings.name, model, self.settings.table("train", TrainConfig))
        return output

    def _check_learnt(self, relation: str) -> None:
        """ConfigError where a later step would need what [output] learns nothing of."""
        for where, name in self._relations_named():
            if name != relation:
                raise ConfigError(
                    f"{self.settings.name}: {where} names the relation {name}, of which [output] "
                    f"learns nothing: it learns {relation}. Remove {name} there."
                )

    def _say_what_is_left_out(self, command: str, trained: "Trained") -> None:
        """Where [output] learnt some relation only; ConfigError where settings name another."""
        if trained.output is not None:
            self._check_learnt(trained.relations[0].name)
        left_out = [r.name for r in trained.graph.relations if r not in trained.relations]
        left_out += [
            name for name in trained.graph.entity_types if name not in trained.entity_types
        ]
        if left_out:
            self._say(
                f"{command}: {trained.relations[0].name} only; [output] learnt nothing of "
                f"{', '.join(left_out)}"
            )

    def _trained(self) -> "Trained":
        """The checkpoint; ConfigError where it is of another model than the file describes."""
        from embedsvc.trained import Trained
        from embedsvc.training.trainer import check_resumable

        graph, output = self._graph(), self._output()
        trained = Trained(graph, self.folders.checkpoint)
        tables = {"model": self.settings.table("model", ModelConfig).model_dump(mode="json")}
        if output is not None:  # its [model] is made of it
            from embedsvc.training.events import relation_of

            found = output.model_copy(update={"relation": relation_of(graph, output).name})
            tables = {"output": found.model_dump(mode="json")}
        check_resumable(trained.manifest, graph, tables, self.folders.checkpoint)
        return trained

    def _graph(self) -> Graph:
        return Graph(self.folders.graph)


@dataclass(frozen=True)
class _Sources:
    """What a version is made of. metrics name the checkpoint, graph is a digest: who came or did
    something since then has another vector. [gate] is none of it: it decides what goes live."""

    settings: dict[str, Any]
    metrics: dict[str, Any]
    graph: str

    def are_of(self, version: PublishedVersion) -> bool:
        settings, metrics = (
            json.loads(bytes(version.file(name))) for name in ("config.json", "metrics.json")
        )
        settings, now = (
            {table: part for table, part in one.items() if table != "gate"}
            for one in (settings, self.settings)
        )
        found = [settings, metrics, version.manifest.graph_digest]
        wanted = [now, self.metrics, self.graph]
        # As text, in which not-a-number equals itself.
        return json.dumps(found, sort_keys=True) == json.dumps(wanted, sort_keys=True)


def _is_of_some(settings: dict[str, Any]) -> bool:
    """Whether an evaluation with these settings leaves out edges of its split."""
    return settings.get("relations") is not None or settings.get("max_edges") is not None


def _check_folder_of(file: Path) -> None:
    """Before work that would end there."""
    if not file.absolute().parent.is_dir():
        raise ConfigError(
            f"--to {file}: the folder {file.parent} does not exist. Make it, or choose another."
        )


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"
