"""Which stage fills which files and folders of a run directory, collected from the stages."""

from collections.abc import Mapping
from types import MappingProxyType

from distill.grading import check
from distill.interop import export
from distill.problems import problems
from distill.targets import align, dataset
from distill.test_time import chains, diversity, revisions, rollouts, study, verifier
from distill.traces import harvest
from distill.training import evaluate, initialise, pretraining, select, train

# Patterns relative to the run directory, by the name of the stage's manifest.
OUTPUTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "problems": problems.OUTPUTS,
        "harvest": harvest.OUTPUTS,
        "check": check.OUTPUTS,
        "align": align.OUTPUTS,
        "dataset": dataset.OUTPUTS,
        **evaluate.OUTPUTS,
        "initialise": initialise.OUTPUTS,
        "train": train.OUTPUTS,
        "pretrain": pretraining.OUTPUTS,
        "select": select.OUTPUTS,
        "export": export.OUTPUTS,
        "diversity": diversity.OUTPUTS,
        "scale": study.OUTPUTS,
        "rollouts": rollouts.OUTPUTS,
        **{f"verifier-{kind}": patterns for kind, patterns in verifier.OUTPUTS.items()},
        "revisions": revisions.OUTPUTS,
        "chains": chains.OUTPUTS,
        "chain_verifier": chains.VERIFIER_OUTPUTS,
    }
)
