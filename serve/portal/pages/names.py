"""What people call the things that programs know by a word; in English, which the catalogues translate."""

from __future__ import annotations

from factory.search.metric import label_of


def _(message: str) -> str:
    """Mark a message for the catalogues."""
    return message


NAMES: dict[str, dict[str, str]] = {
    "origin": {"portfolio": _("the portfolio"), "search": _("the search"), "history": _("an earlier request")},
    "state": {
        "received": _("Received"),
        "queued": _("Waiting"),
        "preparing": _("Preparing"),
        "searching": _("Searching"),
        "evaluating": _("Evaluating"),
        "registered": _("Registered"),
        "serving": _("Serving"),
        "rejected": _("Rejected"),
        "failed": _("Failed"),
        "cancelled": _("Cancelled"),
    },
    "trial": {
        "created": _("Created"),
        "running": _("Running"),
        "succeeded": _("Succeeded"),
        "pruned": _("Pruned"),
        "failed": _("Failed"),
        "killed": _("Killed"),
        "out_of_memory": _("Out of memory"),
    },
    "batch": {"waiting": _("Waiting"), "running": _("Running"), "done": _("Done"), "failed": _("Failed")},
    "gate": {"registered": _("Passed"), "rejected": _("Turned down")},
    "check": {
        "rows": _("Rows"),
        "improvement": _("Improvement"),
        "slices": _("Slices"),
        "latency": _("One row"),
        "size": _("Size"),
        "leakage": _("Leakage"),
        "memory": _("Nothing forgotten"),
    },
    "kind": {
        "cold": _("Searched from nothing"),
        "warm_start": _("Search begun with what others found"),
        "refit": _("The parent's configurations on new rows"),
        "incremental": _("The parent's models trained on"),
    },
    "family": {
        "constant": _("Constant"),
        "linear": _("Linear"),
        "random_forest": _("Random forest"),
        "extra_trees": _("Extra trees"),
        "neighbours": _("Nearest neighbours"),
        "kernel": _("Kernel machine"),
        "lightgbm": "LightGBM",
        "xgboost": "XGBoost",
        "catboost": "CatBoost",
        "tabm": "TabM",
        "torch_network": _("Network (PyTorch)"),
        "keras_network": _("Network (Keras)"),
    },
    "field": {
        "name": _("Name"),
        "title": _("Title"),
        "why": _("Why"),
        "as": _("As"),
        "percent": _("Canary traffic"),
        "email": _("E-mail"),
        "days": _("For"),
        "variants": _("Only for variants like"),
        "scopes": _("May"),
        "cpus": _("CPUs"),
        "gpus": _("GPUs"),
        "memory_gb": _("Memory in GB"),
        "requests": _("Requests at once"),
        "trial_seconds_month": _("Trial-seconds a month"),
        "weight": _("Weight against other teams"),
        "priority": _("Priority"),
        "with_team": _("Team"),
    },
    "finding": {
        "requested": _("as asked"),
        "constant": _("constant"),
        "all_missing": _("empty"),
        "nearly_empty": _("nearly empty"),
        "nearly_constant": _("nearly constant"),
        "identifier": _("identifier"),
        "group": _("name of a group"),
        "duplicate": _("duplicate"),
        "target_copy": _("the target itself"),
        "leakage": _("leak"),
        "absence": _("leak by absence"),
        "correlation": _("almost the target"),
        "rule": _("a telling value"),
        "twins": _("twins"),
        "high_missing": _("mostly missing"),
        "drift": _("drift"),
    },
    "recipe": {
        "title": _("Title"),
        "description": _("Description"),
        "families": _("Model families"),
        "tasks": _("Predicts"),
        "owner": _("Owner"),
        "approval": _("Approval"),
        "budget.default.time_s": _("Usual time in seconds"),
        "budget.default.trials": _("Usual number of trials"),
        "budget.default.memory_gb": _("Usual memory in GB"),
        "budget.ceiling.time_s": _("Longest time in seconds"),
        "budget.ceiling.trials": _("Largest number of trials"),
        "budget.ceiling.memory_gb": _("Largest memory in GB"),
        "max_workers": _("Workers at most"),
        "max_gpus_per_worker": _("GPUs per worker at most"),
        "ceilings.latency_ms": _("One row, in ms at most"),
        "ceilings.size_mb": _("Size in MB at most"),
        "gates.min_improvement": _("Improvement over the baseline at least"),
        "gates.confidence": _("Confidence of the gate"),
    },
    "task": {
        "binary": _("Two classes"),
        "multiclass": _("Several classes"),
        "regression": _("A number"),
    },
    "type": {
        "numeric": _("Number"),
        "categorical": _("Category"),
        "datetime": _("Date and time"),
        "text": _("Text"),
        "boolean": _("Yes or no"),
        "identifier": _("Identifier"),
    },
    "as": {
        "champion": _("Champion"),
        "challenger": _("Challenger"),
        "canary": _("Canary"),
        "shadow": _("Shadow"),
        "none": _("Not served"),
    },
    "scope": {
        "read": _("look"),
        "predict": _("call variants"),
        "submit": _("order"),
        "deploy": _("promote and route"),
        "publish": _("publish recipes"),
        "admin": _("administer"),
    },
    "validation.kind": {
        "auto": _("Automatic"),
        "cross_validation": _("Cross-validation"),
        "holdout": _("Holdout"),
        "time": _("By time"),
        "group": _("By groups"),
    },
    "making": {
        "auto": _("Automatic"),
        "cold": _("Search from nothing"),
        "warm_start": _("Begin with what others found"),
        "refit": _("Train again"),
        "incremental": _("Train on"),
    },
    "gates.baseline": {"auto": _("Automatic"), "constant": _("Constant"), "champion": _("Champion")},
    "dataset.drift": {"warn": _("Only tell"), "drop": _("Leave out")},
    "priority": {"low": _("Low"), "normal": _("Normal"), "high": _("High")},
    "door": {
        "api": _("page or API"),
        "cli": _("command line"),
        "job": _("Ray job"),
        "library": _("library"),
        "trigger": _("trigger"),
    },
}
"""Kind → word of programs → words for people."""

MENU = (
    ("/", _("Home")),
    ("/requests", _("Requests")),
    ("/queue", _("Queue")),
    ("/variants", _("Variants")),
    ("/deployments", _("Deployments")),
    ("/batches", _("Batches")),
    ("/recipes", _("Recipes")),
    ("/datasets", _("Data")),
    ("/features", _("Features")),
    ("/team", _("Team")),
)
"""Pages of the menu: address and name."""


def metric_named(name: str) -> str:
    """Return the name for people of a metric; scores of losses stay negative, and so is their name.

    >>> metric_named("roc_auc"), metric_named("neg_log_loss")
    ('ROC AUC', '\u2212log loss')
    """
    return f"\N{MINUS SIGN}{label_of(name)}" if name.startswith("neg_") else label_of(name)
