"""The scoring command.

    python -m trainer.evaluate TASK CONFIG [key=value ...]

TASK is a protocol (`knn`, `fewshot`, `logistic`, `linear`, `segmentation`, `naming`) or `all`. The
command scores `model`, by default the newest checkpoint of `<run>/train`, and writes
`<run>/scores`: `<task>-<data set>.json`, `scores.json` and `scores.md`. Run again for the same
model, it scores only what is missing and prints all scores. Data sets that are not on this machine
are left out, one line each. With `trainer.launch` the ranks share the features. Exit code 0: all
scores that can be had are there; 2: a setting is wrong; 1: something is missing, and the last line
says what; 75: a rank was lost; 130: Ctrl-C.

    python -m trainer.evaluate check [CONFIG] [data=FOLDER]

lists the data sets that are there, those that are missing, and how to get them.
"""

if __name__ == "__main__":
    from trainer import cli

    cli.check_temporary_folder()

import os
import sys
from collections.abc import Sequence

from trainer import cli
from trainer.evaluate.check import check
from trainer.evaluate.config import EvaluateConfig
from trainer.evaluate.protocols import PROTOCOLS, config_class
from transforms.core.config import load_config, parse_config
from transforms.core.exit_codes import RESTART, UNFINISHED, WRONG_CONFIG

ALL, CHECK = "all", "check"


def _checked_config(path: str | None, overrides: Sequence[str]) -> EvaluateConfig:
    """Return the config of a check, which may be without a file and without a run."""
    if path is None or "=" in path:
        overrides = ["run=unused", *([path] if path else []), *overrides]
        return parse_config(config_class(), "{}", "the command line", overrides)
    return load_config(config_class(), path, overrides)


def main(arguments: Sequence[str]) -> int:
    """Run the command; return its exit code."""
    parser = cli.command_parser(
        "trainer.evaluate",
        "Score an encoder on labelled pictures that its training never saw.",
        config_class(),
    )
    parser.add_argument(
        "task", choices=[*PROTOCOLS, ALL, CHECK], help="what to score it by, or list data sets"
    )
    cli.add_config_arguments(parser, "config", "YAML file of the evaluation", optional=True)
    parsed = parser.parse_args(arguments)
    if parsed.task != CHECK and parsed.config is None:
        parser.error("the following arguments are required: config")
    cli.show_log()

    def work() -> str:
        if parsed.task == CHECK:
            return check(_checked_config(parsed.config, parsed.overrides))
        config = load_config(config_class(), parsed.config, parsed.overrides)
        from trainer.evaluate.scoring import evaluate

        tasks = list(PROTOCOLS) if parsed.task == ALL else [parsed.task]
        if "WORLD_SIZE" not in os.environ:
            return evaluate(tasks, config, PROTOCOLS)
        from trainer.training.session import rank_session, start_rank

        with rank_session():
            start_rank(config)
            return evaluate(tasks, config, PROTOCOLS)

    return cli.run_command(work, _endings())


def _endings() -> Sequence[cli.Ending]:
    """Return the endings of the command: over several ranks those of the trainer's ranks, too."""
    if "WORLD_SIZE" not in os.environ:
        return cli.ENDINGS
    from trainer.distributed import LostRankError
    from trainer.training.errors import RankConfigError, RankError

    return (
        cli.Ending(RankConfigError, WRONG_CONFIG, every_rank=True),
        cli.Ending(RankError, UNFINISHED, every_rank=True),
        cli.Ending(LostRankError, RESTART, "Scoring is not finished: {}", every_rank=True),
        *cli.ENDINGS,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
