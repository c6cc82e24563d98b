"""Pairs: two runs of one seed that differ in the attention, and in what else they differ."""

import pandas as pd

from lcm.errors import plural

# Facts that are not the attention, and in which the two runs of a pair may differ all the same.
# Of several possible pairs the most alike is taken; a note says in what the pairs taken differ.
ENVIRONMENT = {
    "commit": "commit",
    "torch": "version of torch",
    "device": "device or its threads",
    "compile": "use of `compile=true`",
    "rounding": "settings that change rounding alone",
}
SHARED = ["seed", "data_fingerprint", "own_model"]  # what the two runs of a pair have in common
# For an arm without runs: those columns of `paired` that its callers read.
NO_PAIRS = pd.DataFrame(
    columns=["seed", "difference", "lost", *(f"{k}_{arm}" for k in ENVIRONMENT for arm in "ab")],
    dtype=float,
).assign(attention_a="", attention_b="")


def paired(a, b):
    """A row for each seed of both arms on the same pixels and network: `difference` and `lost`.

    a, b: the finished and diverged runs of an arm, several of a seed perhaps: the two that are most
    alike are a pair. A diverged run counts as the worst of its arm; `lost`: see `compare`.
    """
    if a.empty or b.empty:  # most of the paper's comparisons, so far
        return NO_PAIRS
    # The worst accuracy of an arm is that of all its seeds, paired or not. Where every run of
    # an arm diverged there is none: the differences stay NaN, and no pair is left.
    facts = [*SHARED, "state", "test_top1", "start", "attention", *ENVIRONMENT]
    arms = [arm[facts].fillna({"test_top1": arm["test_top1"].min()}) for arm in (a, b)]
    # An arm may have several runs of a seed: all combinations, of which one stays below.
    pairs = arms[0].merge(arms[1], on=SHARED, suffixes=("_a", "_b"))
    diverged = {arm: (pairs[f"state_{arm}"] == "failed").astype(int) for arm in "ab"}
    unlike = unlike_of(pairs)
    pairs = pairs.assign(
        difference=pairs["test_top1_a"] - pairs["test_top1_b"],
        lost=diverged["b"] - diverged["a"],
        failures=diverged["a"] + diverged["b"],
        mixed=unlike["compile"],
        unlike=unlike.sum(axis=1),
    )
    # a finished pair before a failed one, then the most alike, then the plain and the earlier one
    order = ["failures", "mixed", "unlike", "compile_a", "start_a", "start_b"]
    pairs = pairs.dropna(subset="difference").sort_values(order).drop_duplicates("seed")
    # Resamples with a fixed seed depend on the order of the pairs: always that of the seeds.
    return pairs.sort_values("seed", ignore_index=True)


def unlike_of(pairs):
    """For each pair, in what of ENVIRONMENT its two runs differ, as a DataFrame of switches."""
    arms = {key: (pairs[f"{key}_a"], pairs[f"{key}_b"]) for key in ENVIRONMENT}
    # Two runs that were continued elsewhere ("A, then B") need not have changed in the same epoch.
    return pd.DataFrame(
        {key: (a != b) | a.astype(str).str.contains(", then ") for key, (a, b) in arms.items()}
    )


def pair_notes(pairs):
    """How many pairs have two runs of different environments, and whose, as a list of one note.

    pairs: a list of DataFrames.
    """
    # Without the empty ones: joined to the others they would change the types of their columns.
    pairs = pd.concat([found for found in pairs if len(found)] or [NO_PAIRS])
    unlike, arms = unlike_of(pairs), pairs["attention_a"]
    if pairs["attention_b"].nunique() > 1:
        arms = arms + " - " + pairs["attention_b"]
    differ = "; ".join(
        f"{unlike[key].sum()} in the {words} ({', '.join(dict.fromkeys(arms[unlike[key]]))})"
        for key, words in ENVIRONMENT.items()
        if unlike[key].any()
    )
    return (
        [f"{plural(len(pairs), 'pair')}; differences other than the attention: {differ}."]
        if differ
        else []
    )
