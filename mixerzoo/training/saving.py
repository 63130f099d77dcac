"""A checkpoint that is written and has no name yet."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from mixerzoo.errors import RunError
from mixerzoo.files import read_object
from mixerzoo.runs import RunDirectory, prune, publish_checkpoint
from mixerzoo.training.sharded import SUMS, Writing


@dataclass(frozen=True)
class Pending:
    """A checkpoint in a hidden folder; every process has one.

    Attributes:
        folder: where it is, alone in a folder of its own.
        target: where it goes.
        step: after which it was taken.
        processes: how many train.
        sequences: that a step of all of them sees.
        keep: how many checkpoints stay.
        run: whose it is; None: of none.
        main: whether this is the process that gives it its name.
        writing: what is still on its way into it.
    """

    folder: Path
    target: Path
    step: int
    processes: int
    sequences: int
    keep: int
    run: RunDirectory | None
    main: bool
    writing: Writing | None

    @property
    def done(self) -> bool:
        """Whether nothing is on its way any more."""
        return self.writing is None or self.writing.done

    def publish(self) -> None:
        """Wait until all is written, and give it its name; one that cannot be written is removed.

        Raises:
            RunError: a process could not write, or the run directory is gone.
            OSError: the disk is full or fails.
        """
        try:
            if self.writing is not None:
                self.writing.finish()
            if self.main:
                self._publish()
        except BaseException:
            shutil.rmtree(self.folder.parent, ignore_errors=True)
            raise

    def _publish(self) -> None:
        if self.run is not None:
            self.run.check_there()
        sums: dict[str, str] = {}
        for path in self.folder.parent.glob(f"*{SUMS}"):
            sums |= read_object(path, RunError)
            path.unlink()
        publish_checkpoint(
            self.folder,
            self.target,
            run="" if self.run is None else self.run.run_id,
            step=self.step,
            processes=self.processes,
            sequences=self.sequences,
            sums=sums,
        )
        self.folder.parent.rmdir()
        prune(self.target.parent, self.keep)
