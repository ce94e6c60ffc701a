"""The command `rebuild`: counts history again, repartitions, goes back, or drops generations that are not live."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Annotated

from tallystream.client.connect import connect
from tallystream.deployment import Deployment
from tallystream.errors import ConfigurationError
from tallystream.rules.changes import differences as differences_of
from tallystream.storage.keys import MAX_PARTITIONS
from tallystream_worker.cli.differences import print_differences
from tallystream_worker.cli.generation import build, finish_switch
from tallystream_worker.cli.options import AcceptLoss, AsJson, FromArchive, Where, flag, whole
from tallystream_worker.cli.output import console, error_console, print_json
from tallystream_worker.cli.repartition import drop_topics, to_partitions, unspread_rules
from tallystream_worker.cli.replace_rules import ReplaceRules
from tallystream_worker.rebuild.compare import Comparison, compare
from tallystream_worker.rebuild.describe import counted_generations
from tallystream_worker.rebuild.drop import drop as remove
from tallystream_worker.rebuild.rebuild import propose
from tallystream_worker.rebuild.turn import take_turn

if TYPE_CHECKING:
    import redis

    from tallystream.rules.metrics import Rules
    from tallystream_worker.rebuild.rebuild import Rebuild
    from tallystream_worker.settings.settings import Settings


def rebuild(
    *,
    archive: FromArchive = None,
    accept_loss: AcceptLoss = False,
    no_switch: Annotated[bool, flag("build and compare the new generation; do not switch to it")] = False,
    undo: Annotated[bool, flag("bring the previous generation up to date, and switch back to it")] = False,
    drop: Annotated[bool, flag("remove the generations and topics that are not live")] = False,
    partitions: Annotated[
        int | None, whole("repartition to this number of partitions, while events arrive", 1, MAX_PARTITIONS)
    ] = None,
    json: AsJson = False,
    replacing: ReplaceRules = ReplaceRules(),
    where: Where = Where(),
) -> None:
    """Count history again by the configured rules into a new generation, print the differences, and switch to it.

    If no configuration file states rules, the stored rules are used. Stored metrics that the file lacks are counted
    too, unless --replace-rules is given.

    The previous generation is kept until --drop; --undo switches back to it, and so to the rules that it was counted
    by. Both print how the rules differ. A worker that restarts publishes the rules of its configuration file again. Run
    the same command again to continue an interrupted rebuild. If a switch is incomplete, because it was interrupted or
    a failover has undone it in some partitions, a command without --undo and --drop only completes this switch: run it
    again for what its options state.

    With --partitions the events are copied to a new topic and counted there by the live rules, for example
    `tallystream rebuild --partitions 16`. Before the switch, --drop gives the repartition up. After the switch it
    cannot be undone; repartition again instead. If the configuration turns `spread` off for a metric, the command
    repartitions to the present number of partitions; with --no-switch, it fails instead.
    """
    _refuse_combinations(undo, drop, partitions, no_switch=no_switch, replacing=replacing.replace_rules)
    settings = where.settings()
    with closing(connect(settings.redis.url)) as client:
        deployment = Deployment.load(client, settings.redis.namespace)
        if drop:
            _drop(client, deployment, json=json)
            return
        source = settings.archive.url if archive is None else archive
        if deployment.is_half_switched and not undo:
            deployment = finish_switch(settings, deployment, source)
            _print_live(deployment.generation, json=json, is_kept=bool(deployment.others))
            return
        deployment, turn = (deployment, None) if partitions is not None else _turn(client, deployment)
        rules = settings.rules_over(deployment.declared, replacing.removing(settings))
        if rules is deployment.declared and not undo:
            error_console.print("no configuration file states rules: the stored rules are used")
        if partitions is None and not undo and not no_switch and unspread_rules(deployment, rules) is not None:
            partitions = deployment.layout.partitions  # events that are no longer spread need a new topic
        if partitions is not None:
            to_partitions(settings, deployment, partitions, source, accept_loss=accept_loss, json=json)
            return
        if undo:
            generation = _kept(deployment)
        else:
            generation = propose(client, deployment, rules)
            deployment = Deployment.load(client, settings.redis.namespace)
        compared = Comparison([], 0)

        def review(run: Rebuild) -> bool:
            nonlocal compared
            if not undo:
                compared = compare(client, deployment, generation, run.follow)
                if not json:
                    print_differences(compared.differences, ("live", "new", "change"))
                    _print_moving(compared.moving, no_switch=no_switch)
            return not no_switch

        build(settings, deployment, generation, source, accept_loss=accept_loss, begun=undo, turn=turn, review=review)
        changed_rules = differences_of(deployment.rules, deployment.rules_of(generation))
    if json:
        listed = [
            {"stream": each.stream, "counter": each.counter, "live": each.expected, "new": each.found}
            | {"change": each.difference}
            for each in compared.differences
        ]
        result = {"generation": generation, "live": not no_switch, "differences": listed, "moving": compared.moving}
        print_json(result | {"rules": changed_rules})
    elif no_switch:
        console.print(f"generation {generation} is built but not live; {len(compared.differences):,} counters differ")
    else:
        _print_live(generation, json=False)
        if undo:
            _print_rules(f"the rules of generation {generation} are live again:", changed_rules)
            unpublished = _unpublished(settings, deployment.rules_of(generation))
            _print_rules("a worker that restarts publishes the rules of its configuration file again:", unpublished)


def _turn(client: redis.Redis, deployment: Deployment) -> tuple[Deployment, int]:
    """Take a turn; return the deployment, as earlier commands have left it, and the number: see `take_turn`."""
    turn = take_turn(client, deployment)
    return deployment.reload(client), turn


def _print_moving(moving: int, *, no_switch: bool) -> None:
    """Print how many counters were not compared, and how to check them; print nothing if there are none."""
    if moving:
        how = (
            "to compare them, run the command again when fewer events arrive"
            if no_switch
            else "after the switch, check them with tallystream audit"
        )
        console.print(
            f"{moving:,} counters were not compared, because events for them were always waiting to be counted: {how}",
            soft_wrap=True,
        )


def _print_live(generation: int, *, json: bool, is_kept: bool = True) -> None:
    if json:
        print_json({"generation": generation, "live": True, "differences": [], "moving": 0, "rules": []})
    else:
        kept = "; the previous one is kept: --undo goes back to it, --drop removes it" if is_kept else ""
        console.print(f"generation {generation} is live{kept}")


def _drop(client: redis.Redis, deployment: Deployment, *, json: bool) -> None:
    """Remove the generations and topics that are not live; print what was removed, and how removed rules differ."""
    counted = counted_generations(client, deployment.layout)  # also without rules
    others = {*deployment.others, *counted, *deployment.dropping} - {deployment.generation}
    removed = {generation: remove(client, deployment, generation) for generation in sorted(others)}
    topics = drop_topics(client, deployment)
    changed = {each: differences_of(deployment.rules_of(each), deployment.rules) for each in removed}
    if json:
        print_json({"removed": removed, "topics": topics, "rules": changed})
    else:
        named = {f"generation {each}": keys for each, keys in removed.items()}
        named |= {f"topic {each}": keys for each, keys in topics.items()}
        said = ", ".join(f"{name} ({keys:,} keys)" for name, keys in named.items())
        console.print(f"removed {said or 'nothing: there is only the live generation'}")
        for each, words in changed.items():
            _print_rules(f"the rules of generation {each} are removed too; the live rules differ:", words)


def _unpublished(settings: Settings, live: Rules) -> list[str]:
    """Return how the rules that a worker would publish differ from the live ones; or, as one text, why it could not.

    Empty if they do not differ, or if the configuration states no rules.
    """
    try:
        return differences_of(live, settings.rules_over(live))
    except ConfigurationError as error:
        return [str(error)]


def _print_rules(title: str, words: list[str]) -> None:
    """Print the differences of two rules, each in a line after the title; print nothing if there are none."""
    if words:
        console.print(title, soft_wrap=True)
    for difference in words:
        console.print(f"    {difference}", soft_wrap=True)


def _refuse_combinations(
    undo: bool,
    drop: bool,
    partitions: int | None,
    *,
    no_switch: bool,
    replacing: bool,
) -> None:
    chosen = sum((undo, drop, partitions is not None))
    if chosen > 1 or (no_switch and partitions is not None):
        raise ConfigurationError(
            "give only one of --undo, --drop and --partitions, and do not combine --no-switch with --partitions"
        )
    if chosen and replacing:
        raise ConfigurationError(
            "do not combine --replace-rules with --undo, --drop or --partitions, which remove no metric: rebuild first"
        )


def _kept(deployment: Deployment) -> int:
    if deployment.kept is not None and not deployment.others:
        raise ConfigurationError(
            "cannot undo a repartition: events appended since then exist only in the new streams. Run "
            '"tallystream rebuild --drop", then repartition again with '
            f"--partitions {deployment.earlier[deployment.kept]}"
        )
    kept = [generation for generation in deployment.others if generation != deployment.building]
    if deployment.building is not None or len(kept) != 1:
        raise ConfigurationError("cannot undo: no previous generation is kept")
    return kept[0]
