"""The road of a file with [ranker]: what `embedsvc train | eval | publish | gate | run` do and
print.

There is no graph: `train` reads rows, encodes them once and learns from them.
"""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from embedsvc.config import EvalConfig, GateConfig, OutputConfig, PublishConfig, TrainConfig
from embedsvc.ranking.config import RankerConfig
from partitions import durable, releases
from partitions.config import RunConfig, Settings
from partitions.errors import ConfigError
from partitions.memory import forget_peak, peak_bytes
from partitions.progress import rows_bar
from partitions.published import PublishedVersion

if TYPE_CHECKING:
    from embedsvc.evaluation.ranker_gate import RankerGate
    from embedsvc.publish_ranker import Variant
    from embedsvc.ranking.trained import TrainedRanker
    from embedsvc.release_road import Releases
    from embedsvc.training.trainer import TrainReport

EVALUATION = "evaluation.json"


class _AnyTable(BaseModel, extra="allow"):
    """Of which it is asked only whether it is there."""


class RankerRoad:
    def __init__(self, settings: Settings, *, quiet: bool = False) -> None:
        from embedsvc.training.ranker import RankerFolders, check_covered

        self.settings = settings
        self.config = settings.table("ranker", RankerConfig)
        self.train_config = settings.table("train", TrainConfig)
        run = settings.table("run", RunConfig).dir
        self.folders, self.published = RankerFolders(run / "ranker"), run / "published"
        self.console = Console(quiet=quiet)
        if settings.table("output", OutputConfig).kind is not None:
            raise ConfigError(f"{settings.name}: [output] and [ranker] are two models: two files.")
        if settings.table("graph", _AnyTable).model_extra:
            raise ConfigError(f"{settings.name}: [graph] and [ranker] are two models: two files.")
        check_covered(settings.name, self.train_config)

    def _say(self, line: str) -> None:
        self.console.print(line, soft_wrap=True, markup=False)

    def import_graph(self, *, if_needed: bool = False, **_: Any) -> None:
        if not if_needed:
            raise ConfigError(
                f"{self.settings.name}: [ranker] has no graph to import: embedsvc train reads its "
                "rows."
            )

    def plan(self) -> None:
        from embedsvc.training.ranker import check, plan

        check(self.folders, self.config, self.train_config)
        found = plan(self.folders, self.config, self.train_config.threads)
        self._say(str(found))
        found.check(self.train_config.memory_mb)

    def train(self) -> "TrainReport":
        from embedsvc.training import report as page
        from embedsvc.training.ranker import train

        forget_peak()
        report = train(self.folders, self.config, self.train_config)
        if report.best_epoch is not None:
            stopped = ", stopped early" if report.stopped_early else ""
            self._say(f"train: best after epoch {report.best_epoch}{stopped}")
        if not report.num_edges:
            fitted = f", {self.config.calibration} calibration fitted on ranker.valid"
            calibrated = self.config.calibration != "none"
            self._say(f"train: nothing left to {f'learn{fitted}' if calibrated else 'do'}")
            return report
        speed = f"{report.num_edges / report.train_s:,.0f} rows/s"
        self._say(
            f"train: {report.num_edges:,} rows in {report.train_s:.1f} s ({speed}), "
            f"last loss {report.loss:.4f}"
        )
        memory = (
            f"{peak_bytes() / 1e6:,.0f} MB at most, planned {report.planned_bytes / 1e6:,.0f} MB"
        )
        facts = {
            "last run": f"{report.num_edges:,} rows in {report.train_s:,.1f} s, {speed}",
            "memory": memory,
        }
        path = page.write(self.folders.checkpoint, f"Training of {self.folders.path}", facts)
        self._say(f"train: memory {memory}; curves in {path}")
        return report

    def evaluate(self, *, if_needed: bool = False, through: str | None = None) -> dict[str, Any]:
        from embedsvc.evaluation.rankers import clicks_of, report_of, said_by
        from embedsvc.ranking.trained import TrainedRanker
        from embedsvc.training.ranker import check_files

        if through is not None:
            raise ConfigError(f"{self.settings.name}: --through compares lists; [ranker] has none.")
        config = self.settings.table("eval", EvalConfig)
        split = config.split
        if not getattr(self.config, split):
            sentence = (
                f"{self.settings.name}: [eval] split = {split!r}, but ranker.{split} names no rows"
            )
            if if_needed:
                self._say(f"eval: {sentence}")
                return {}
            raise ConfigError(f"{sentence}: set it, or choose another split.")
        check_files(self.config, [split])
        trained, start = TrainedRanker(self.folders.checkpoint), time.perf_counter()
        self._check_current(trained)
        with rows_bar(self.console) as bar:
            task = bar.add_task("eval", total=None)
            found = clicks_of(
                said_by(trained), self.config, split, lambda rows: bar.advance(task, rows)
            )
        result = report_of(*found)
        result |= {"checkpoint": trained.digest, "calibration": trained.calibration_digest}
        result["split"] = split
        result["seconds"] = round(time.perf_counter() - start, 2)
        self._print(result)
        path = self.folders.checkpoint / EVALUATION
        durable.write_json(path, durable.without_nan(result))
        if config.report:
            from embedsvc.evaluation import ranker_report

            title = f"Evaluation of {self.folders.path}"
            shown = ranker_report.Evaluated(result, found[1], self.config)
            html = ranker_report.write(path.with_suffix(".html"), title, shown, self.published)
            self._say(f"eval: figures and calibration in {html}")
        return result

    def _check_current(self, trained: "TrainedRanker") -> None:
        """ConfigError where the checkpoint is not what the file describes, as would be recorded."""
        from embedsvc.training.ranker import check_same

        path, wanted = self.folders.checkpoint, self.config.calibration
        check_same(trained.config, self.config, path)
        if trained.calibrated != wanted:
            raise ConfigError(
                f"{path} has ranker.calibration = {json.dumps(trained.calibrated)}, now it is "
                f"{json.dumps(wanted)}: run embedsvc train first, which fits it."
            )

    def _print(self, result: dict[str, Any]) -> None:
        from embedsvc import pages
        from embedsvc.evaluation.significance import Interval

        title = f"{result['rows']:,} {result['split']} rows"
        table = Table(title=title, box=SIMPLE_HEAD, padding=0)
        columns = ("", "AUC", "95 %", "log loss", "of share", "calib.", "ECE", "by user")
        for column in columns:  # within 80 characters, beside a label of up to 11
            table.add_column(column, justify="right" if column else "left", no_wrap=bool(column))
        for name, row in result["labels"].items():
            interval = ""
            if "auc_low" in row:
                interval = f"[{row['auc_low']:.4f}, {row['auc_high']:.4f}]"
            gauc = "" if row["gauc"] is None else f"{row['gauc']:.4f}"
            table.add_row(
                escape(name),
                f"{row['auc']:.4f}",
                interval,
                *(f"{row[key]:.4f}" for key in ("log_loss", "log_loss_of_share")),
                *(f"{row[key]:.4f}" for key in ("calibration", "ece")),
                gauc,
            )
        self.console.print(table)
        for name, row in result["labels"].items():
            if "user_auc" in row:
                of = Interval(*(row[f"user_auc{end}"] for end in ("", "_low", "_high")))
                self._say(
                    f"eval: {name}/user_auc {pages.spread(of)}: the mean of "
                    f"{row['user_auc_users']:,} users' own AUC, each once, as [gate] has it"
                )
        self._say(f"eval: {result['seconds']:.1f} s")

    def export(self, to: Path, format: str | None, entity_type: str | None) -> list[Path]:
        raise ConfigError(
            f"{self.settings.name}: [ranker] has no vectors by key to export; embedsvc publish "
            "makes the model that is served."
        )

    def recommend_all(self, relation: str | None, to: Path, k: int, *, long: bool = False) -> None:
        raise ConfigError(f"{self.settings.name}: [ranker] has no lists; it scores rows.")

    def publish(self, *, if_needed: bool = False) -> bool:
        """Whether what the settings say is live now."""
        from embedsvc.publish_ranker import Rows, publish
        from embedsvc.ranking.trained import TrainedRanker
        from embedsvc.training.ranker import check_files

        config = self.settings.table("publish", PublishConfig)
        config.check(self.settings.name, config.OF_GRAPHS, "with [ranker]")
        trained, start = TrainedRanker(self.folders.checkpoint), time.perf_counter()
        self._check_current(trained)
        evaluation, root = self._evaluation_of(trained), self.published
        settings = self.settings.resolved() | {"train": trained.train_settings}
        if if_needed:
            standing = self._releases().standing(
                lambda version: _is_of(version, settings, trained, evaluation)
            )
            if standing is not None:
                return standing
        check_files(self.config, ["valid" if self.config.valid else "train"])
        judge = self._judge()
        judge.check()
        rows = Rows(self.folders.encoded, self.config)
        manifest, variants, decision = publish(
            trained, rows, root, config, settings, evaluation, judge
        )
        self._print_variants(variants)
        size = sum(file.bytes for file in manifest.files.values())
        self._releases().say_published(
            manifest.version,
            decision,
            f"{size / 1e6:,.1f} MB, golden rows agree, {time.perf_counter() - start:.1f} s",
        )
        return decision.promoted

    def gate(self, version: str | None = None, *, force: bool = False) -> bool:
        """Whether the version is live now."""
        return self._releases().gate(self._judge, version, force=force)

    def _releases(self) -> "Releases":
        from embedsvc.release_road import Releases

        keep = self.settings.table("publish", PublishConfig).keep
        return Releases(self.published, self.settings.name, keep, self._say)

    def _judge(self) -> "RankerGate":
        from embedsvc.evaluation.ranker_gate import RankerGate

        return RankerGate(
            self.config,
            self.published,
            self.published.parent / releases.USES,
            self.settings.table("gate", GateConfig),
        )

    def compare(
        self, old: str, new: str, relations: list[str], to: Path | None, *, as_json: bool = False
    ) -> None:
        from embedsvc.evaluation import compare_page
        from embedsvc.evaluation.compare import compare_rankers, opened
        from embedsvc.training.ranker import check_files

        if relations:
            raise ConfigError(f"{self.settings.name}: [ranker] has no relations: leave --relation.")
        split = self.settings.table("eval", EvalConfig).split
        if not getattr(self.config, split):
            raise ConfigError(
                f"{self.settings.name}: [eval] split = {split!r}, but ranker.{split} names no "
                "rows: set it, or choose another split."
            )
        check_files(self.config, [split])
        before, after = opened(self.published, old), opened(self.published, new)
        with rows_bar(self.console) as bar:
            task = bar.add_task("compare", total=None)
            found = compare_rankers(
                before, after, self.config, split, lambda rows: bar.advance(task, rows)
            )
        path = to or self.published / f"compare-{before.name}-{after.name}.html"
        compare_page.show(found, self.console, path, as_json=as_json)

    def _evaluation_of(self, trained: "TrainedRanker") -> dict[str, Any]:
        """Of exactly this checkpoint, calibrated as it is; empty where it was not evaluated."""
        path = self.folders.checkpoint / EVALUATION
        found = durable.read_json(path, "Run embedsvc eval again.") if path.exists() else {}
        now = {"checkpoint": trained.digest, "calibration": trained.calibration_digest}
        return found if now.items() <= found.items() else {}

    def _print_variants(self, variants: list["Variant"]) -> None:
        table = Table(title="200 rows a call, one thread")
        for column in ("", "MB", "p50 CPU ms", "p99 CPU ms", "AUC", "AUC cost"):
            table.add_column(column, justify="left" if not column else "right")
        for one in variants:
            said = [
                " ".join("" if value is None else f"{value:.4f}" for value in part.values())
                for part in (one.auc, one.auc_cost)
            ]
            times = (f"{ms:.3f}" for ms in (one.p50_cpu_ms, one.p99_cpu_ms))
            table.add_row(one.name, f"{one.bytes / 1e6:,.2f}", *times, *said)
        self.console.print(table)


def _is_of(
    version: PublishedVersion,
    settings: dict[str, Any],
    trained: "TrainedRanker",
    evaluation: dict[str, Any],
) -> bool:
    """Whether a version was made of these. [gate] is none of it: it decides what goes live."""
    from embedsvc.publish_ranker import sources_of

    config, metrics = (
        json.loads(bytes(version.file(name))) for name in ("config.json", "metrics.json")
    )
    for key in ("variants", "evaluation_of"):  # times differ
        metrics.pop(key, None)
    config, settings = (
        {table: part for table, part in one.items() if table != "gate"}
        for one in (config, settings)
    )
    wanted = [settings, sources_of(trained, evaluation)]
    return json.dumps([config, metrics], sort_keys=True) == json.dumps(wanted, sort_keys=True)
