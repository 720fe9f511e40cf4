"""The commands of `distill` by name: stages, bound by gin, and tools with flags of their own."""

# Each stage is a function with keyword-only arguments in a module that is imported when it runs.
STAGES = {
    "problems": ("distill.problems.problems", "run"),
    "harvest": ("distill.traces.harvest", "run"),
    "check": ("distill.grading.check", "run"),
    "align": ("distill.targets.align", "run"),
    "dataset": ("distill.targets.dataset", "run"),
    "train": ("distill.training.train", "run"),
    "evaluate": ("distill.training.evaluate", "run"),
    "select": ("distill.training.select", "run"),
    "final": ("distill.training.evaluate", "final"),
    "export": ("distill.interop.export", "run"),
    "report": ("distill.reports.report", "run"),
    "initialise": ("distill.training.initialise", "run"),
    "pretrain": ("distill.training.pretraining", "run"),
    "diversity": ("distill.test_time.diversity", "run"),
    "scale": ("distill.test_time.study", "run"),
    "rollouts": ("distill.test_time.rollouts", "run"),
    "verifier": ("distill.test_time.verifier", "run"),
    "revisions": ("distill.test_time.revisions", "run"),
    "chains": ("distill.test_time.chains", "run"),
    "chain_verifier": ("distill.test_time.chains", "verifier"),
}
# The stages of a run whose file names none, in order.
MAIN_JOB = (
    "problems",
    "harvest",
    "check",
    "align",
    "dataset",
    "train",
    "evaluate",
    "select",
    "final",
    "export",
    "report",
)
# Tools work on files or sockets instead of a run directory. Each is a module with
# `main(arguments) -> int` that reads its own flags and imports what is heavy when it runs.
TOOLS = {
    "verify": "distill.runs.verify",
    "watch": "distill.runs.watch",
    "plan": "distill.runs.plan",
    "launch": "distill.runs.launch",
    "import": "distill.interop.importing",
    "serve": "distill.serving.serve",
    "merge": "distill.traces.merge",
    "grade": "distill.grading.grade",
    "vote": "distill.test_time.vote_command",
    "answer": "distill.test_time.answer_command",
}
