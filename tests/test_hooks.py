from __future__ import annotations

import logging
import math
from types import SimpleNamespace
from typing import Any

import pluggy
import pytest

from appliance.errors import Denied, NotFound, PluginError, cause_chain
from appliance.hooks import (
    Auth,
    Compute,
    Driver,
    Filters,
    Injection,
    NamedPlugin,
    Network,
    Observers,
    RoleMaker,
    Scheduler,
    Weights,
    hook_names,
)
from appliance.hookspecs import GROUPS, hookimpl
from appliance.model import (
    AttachedPort,
    DiskAttachment,
    Finding,
    HttpRequest,
    Identity,
    InjectionRequest,
    InjectionResult,
    InstanceFact,
    InstanceMetadata,
    NetworkSpec,
    PortSpec,
    PowerState,
    Ranking,
    Refusals,
    tap_name,
)
from appliance.testing.nodes import make_cluster, make_node, make_request
from appliance.testing.observer import make_entry


def filling(**answers: Any) -> object:
    """Return a plugin whose hooks answer these values, or raise those that are exceptions."""

    def method(answer: Any) -> Any:
        def hook(self: object) -> Any:
            if isinstance(answer, BaseException):
                raise answer
            return answer

        return hookimpl(hook)

    return type("Plugin", (), {name: method(answer) for name, answer in answers.items()})()


class TestNobodyOrTwo:
    @pytest.mark.parametrize("group", sorted(GROUPS))
    def test_a_plugin_that_fills_nothing_is_refused(self, group: str) -> None:
        driver = type("Some", (Driver,), {"group": group})
        with pytest.raises(PluginError, match=f"'empty' of {group} fills no hook"):
            driver("empty", object())

    def test_marks_of_another_project_do_not_count(self) -> None:
        class Foreign:
            @pluggy.HookimplMarker("other")
            def scheduler_rank(self, request: object, nodes: object) -> object: ...

        with pytest.raises(PluginError, match="fills no hook"):
            Scheduler("foreign", Foreign())

    def test_a_driver_that_lacks_a_hook_is_refused(self) -> None:
        with pytest.raises(PluginError, match=r"'half' of .*injection fills injection_remove 0"):
            Injection("half", filling(injection_inject=None))

    def test_a_driver_that_fills_a_hook_twice_is_refused(self) -> None:
        class Twice:
            @hookimpl
            def scheduler_rank(self, request: object, nodes: object) -> None: ...

            @hookimpl(specname="scheduler_rank")
            def another(self, request: object, nodes: object) -> None: ...

        with pytest.raises(PluginError, match="fills scheduler_rank 2 times"):
            Scheduler("twice", Twice())

    def test_wrapper_is_refused(self) -> None:
        class Wrapper:
            @hookimpl(wrapper=True)
            def scheduler_rank(self, request: object, nodes: object) -> Any:
                return (yield)

        with pytest.raises(PluginError, match="scheduler_rank is a wrapper"):
            Scheduler("wrapper", Wrapper())

    @pytest.mark.parametrize("given", [None, Scheduler])
    def test_create_must_return_an_object(self, given: object) -> None:
        with pytest.raises(PluginError, match=r"create\(\) of plugin 'none'"):
            Scheduler("none", given)

    def test_no_authentication_at_all_is_refused(self) -> None:
        with pytest.raises(PluginError, match="No authentication plugin"):
            Auth({})


class TestNamesAndArguments:
    def test_misspelt_hook_is_refused(self) -> None:
        plugin = filling(observer_instance_evnt=None, observer_node_check=())
        with pytest.raises(PluginError, match="unknown hook 'observer_instance_evnt'"):
            Observers({"misspelt": plugin})

    def test_wrong_argument_name_is_refused(self) -> None:
        class Wrong:
            @hookimpl
            def scheduler_rank(self, request: object, hosts: object) -> None: ...

        with pytest.raises(PluginError, match=r"'wrong' breaks the contract.*hosts"):
            Scheduler("wrong", Wrong())

    def test_argument_with_default_is_refused(self) -> None:
        class Defaulted:
            @hookimpl
            def scheduler_rank(self, request: object, nodes: object = ()) -> None: ...

        with pytest.raises(PluginError, match="scheduler_rank gives a default to nodes"):
            Scheduler("defaulted", Defaulted())

    def test_arguments_that_are_not_needed_may_be_left_out(self) -> None:
        plugin = filling(scheduler_rank=Ranking(node_ids=(), considered=0))
        assert Scheduler("few", plugin).rank(make_request(), []).node_ids == ()


class TestAnswers:
    @pytest.mark.parametrize("answer", [None, "node", [], {"node_ids": ()}])
    def test_wrong_type_is_refused(self, answer: object) -> None:
        driver = Scheduler("wrong", filling(scheduler_rank=answer))
        kind = type(answer).__name__
        with pytest.raises(PluginError) as caught:
            driver.rank(make_request(), make_cluster(3))
        assert caught.value.message == (
            f"scheduler_rank of plugin 'wrong' of appliance.scheduler answered {kind}, "
            "not Ranking, asked with request i-00000000000000001, 3 nodes."
        )

    def test_an_answer_where_none_is_due_is_refused(self) -> None:
        driver = Injection("chatty", filling(injection_inject=None, injection_remove=True))
        with pytest.raises(PluginError, match="answered bool, but must answer nothing"):
            driver.remove("/var/lib/anynode/instances/i-1")

    @pytest.mark.parametrize(
        ("answer", "problem"),
        [
            (None, "answered NoneType, not a list of InstanceFact"),
            (["i-1"], "answered a str among InstanceFacts"),
            (iter(()), "answered tuple_iterator, not a list"),
        ],
    )
    def test_items_of_lists_are_checked(self, answer: object, problem: str) -> None:
        hooks = dict.fromkeys(hook_names("appliance.compute"))
        driver = Compute("wrong", filling(**{**hooks, "compute_list": answer}))
        with pytest.raises(PluginError, match=problem):
            driver.list()

    def test_lists_become_tuples(self) -> None:
        fact = InstanceFact(instance_id="i-1", epoch=1, power=PowerState.RUNNING)
        hooks = dict.fromkeys(hook_names("appliance.compute"))
        driver = Compute("right", filling(**{**hooks, "compute_list": [fact]}))
        assert driver.list() == (fact,)

    def test_a_role_maker_must_make_a_role(self) -> None:
        with pytest.raises(PluginError, match="answered NoneType, not Role"):
            RoleMaker("none", filling(role_create=None)).create(SimpleNamespace())  # type: ignore[arg-type]


class TestFailures:
    def test_what_is_no_error_of_ours_names_plugin_and_hook(self) -> None:
        driver = Scheduler("buggy", filling(scheduler_rank=KeyError("zone")))
        with pytest.raises(PluginError) as caught:
            driver.rank(make_request(), make_cluster(2))
        assert cause_chain(caught.value) == (
            (
                "scheduler_rank of plugin 'buggy' of appliance.scheduler failed, asked with "
                "request i-00000000000000001, 2 nodes."
            ),
            "KeyError: 'zone'",
        )
        assert "authors" in caught.value.hint

    def test_errors_of_ours_pass(self) -> None:
        error = NotFound("No such tap.")
        hooks = dict.fromkeys(hook_names("appliance.network"))
        driver = Network("right", filling(**{**hooks, "network_raise": error}))
        with pytest.raises(NotFound) as caught:
            driver.raise_link("eni-1")
        assert caught.value is error

    @pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1)])
    def test_the_end_of_the_program_passes(self, error: BaseException) -> None:
        with pytest.raises(type(error)):
            Scheduler("ends", filling(scheduler_rank=error)).rank(make_request(), [])

    def test_an_error_shows_keys_and_no_secrets(self) -> None:
        request = HttpRequest(
            method="POST",
            target="/?X-Amz-Signature=s3cr3t",
            headers=(("authorization", "s3cr3t"),),
            body=b"s3cr3t",
            source="127.0.0.1",
        )
        with pytest.raises(PluginError) as caught:
            Auth({"buggy": filling(auth_authenticate=1)}).authenticate(request, 0.0)
        assert "request POST" in caught.value.message
        assert "s3cr3t" not in caught.value.message


class TestRankings:
    @pytest.mark.parametrize(
        ("changes", "named", "problem"),
        [
            ({}, (1, 1), "a node twice"),
            ({}, (9,), "was not asked about"),
            ({"excluded_node_ids": (make_node(1).node_id,)}, (1,), "request excludes"),
            ({"pinned_node_id": make_node(2).node_id}, (2, 1), "is pinned to"),
        ],
    )
    def test_nodes_that_may_not_be_named(
        self, changes: dict[str, Any], named: tuple[int, ...], problem: str
    ) -> None:
        ranking = Ranking(node_ids=tuple(make_node(n).node_id for n in named), considered=3)
        driver = Scheduler("wrong", filling(scheduler_rank=ranking))
        with pytest.raises(PluginError, match=problem):
            driver.rank(make_request(**changes), [make_node(number) for number in range(3)])

    def test_a_record_that_is_too_large_is_refused(self) -> None:
        refusals = Refusals(filter="x", nodes=1, reasons={"y" * 20_000: 1})
        ranking = Ranking(node_ids=(), considered=1, refusals=(refusals,))
        with pytest.raises(PluginError, match="bytes, more than 16384"):
            Scheduler("large", filling(scheduler_rank=ranking)).rank(make_request(), [make_node(1)])


class TestFiltersAndWeights:
    @pytest.mark.parametrize(
        ("answer", "problem"),
        [
            ([None], "answered 1 times for 2 nodes"),
            ([None, False], "something else than None or a reason"),
            ([None, ""], "something else than None or a reason"),
            ((None, None), "answered tuple, not list"),
        ],
    )
    def test_wrong_masks(self, answer: object, problem: str) -> None:
        [(name, refuse)] = Filters({"wrong": filling(filter_refuse=answer)}).named()
        assert name == "wrong"
        with pytest.raises(PluginError, match=problem):
            refuse(make_request(), make_cluster(2))

    @pytest.mark.parametrize(
        ("answer", "problem"),
        [
            ([1.0], "answered 1 times for 2 nodes"),
            ([1.0, None], "something else than a finite number"),
            ([1.0, math.nan], "something else than a finite number"),
            ([1.0, math.inf], "something else than a finite number"),
        ],
    )
    def test_wrong_scores(self, answer: object, problem: str) -> None:
        weights = Weights({"wrong": (filling(weight_score=answer), 1.0)})
        with pytest.raises(PluginError, match=problem):
            weights.score(make_request(), make_cluster(2))

    @pytest.mark.parametrize(
        ("raw", "multiplier", "scaled"),
        [
            ([5, 10, 7.5], 2.0, [0.0, 2.0, 1.0]),
            ([-3, -3, -3], 2.0, [0.0, 0.0, 0.0]),
            ([1, 2, 3], -1.0, [0.0, -0.5, -1.0]),
        ],
    )
    def test_scores_are_scaled(
        self, raw: list[float], multiplier: float, scaled: list[float]
    ) -> None:
        weights = Weights({"some": (filling(weight_score=raw), multiplier)})
        assert weights.score(make_request(), make_cluster(3)) == [("some", scaled)]


IDENTITY = Identity(user_id="u-1", user_name="ann", project_id="p-1", access_level="member")
REQUEST = HttpRequest(method="GET", target="/", headers=(), body=b"", source="127.0.0.1")


class TestAuth:
    def test_the_first_that_knows_the_sender_answers(self) -> None:
        later = filling(auth_authenticate=AssertionError("asked"))
        plugins = {
            "a": filling(auth_authenticate=None),
            "b": filling(auth_authenticate=IDENTITY),
            "c": later,
        }
        assert Auth(plugins).authenticate(REQUEST, 0.0) == IDENTITY

    def test_a_denial_is_final(self) -> None:
        plugins = {
            "a": filling(auth_authenticate=Denied("Bad signature.")),
            "b": filling(auth_authenticate=IDENTITY),
        }
        with pytest.raises(Denied, match="Bad signature"):
            Auth(plugins).authenticate(REQUEST, 0.0)

    def test_nobody_knows_the_sender(self) -> None:
        assert Auth({"a": filling(auth_authenticate=None)}).authenticate(REQUEST, 0.0) is None

    def test_a_plugin_cannot_push_itself_forward(self) -> None:
        class Pushy:
            @hookimpl(tryfirst=True)
            def auth_authenticate(self) -> Identity:
                raise AssertionError("asked first")

        plugins = {"a": filling(auth_authenticate=IDENTITY), "pushy": Pushy()}
        assert Auth(plugins).authenticate(REQUEST, 0.0) == IDENTITY

    @pytest.mark.parametrize("answer", [False, True, "ann", {"user_id": "root"}])
    def test_a_wrong_answer_lets_nobody_in(self, answer: object) -> None:
        plugins = {"a": filling(auth_authenticate=answer), "b": filling(auth_authenticate=IDENTITY)}
        with pytest.raises(PluginError, match=r"plugin 'a' .*not Identity"):
            Auth(plugins).authenticate(REQUEST, 0.0)


class Listener:
    """An observer that fills one hook of two."""

    def __init__(self) -> None:
        self.heard: list[object] = []

    @hookimpl
    def observer_instance_event(self, entry: object) -> None:
        self.heard.append(entry)


class TestObservers:
    @pytest.mark.parametrize("error", [RuntimeError("broken"), Denied("no"), NotFound("no")])
    def test_one_that_raises_does_not_silence_the_others(
        self, error: Exception, caplog: pytest.LogCaptureFixture
    ) -> None:
        before, after = Listener(), Listener()
        raising = filling(observer_instance_event=error, observer_node_check=error)
        observers = Observers({"before": before, "raising": raising, "after": after})
        entry = make_entry()
        with caplog.at_level(logging.ERROR):
            observers.instance_event(entry)
        assert before.heard == after.heard == [entry]
        assert "'raising'" in caplog.text
        assert "observer_instance_event" in caplog.text

    @pytest.mark.parametrize("nonsense", [3, "text", [3], None])
    def test_findings_of_others_survive_nonsense(
        self, nonsense: object, caplog: pytest.LogCaptureFixture
    ) -> None:
        finding = Finding(code="X", level="error", message="Wrong.")
        plugins = {
            "wrong": filling(observer_node_check=nonsense),
            "right": filling(observer_node_check=[finding]),
        }
        with caplog.at_level(logging.ERROR):
            assert Observers(plugins).node_check() == [finding]

    def test_order_is_that_of_the_settings(self) -> None:
        def finds(code: str) -> object:
            return filling(observer_node_check=[Finding(code=code, level="error", message="x")])

        found = Observers({"b": finds("B"), "a": finds("A"), "c": finds("C")}).node_check()
        assert [one.code for one in found] == ["B", "A", "C"]


METADATA = InstanceMetadata(
    instance_id="i-1",
    project_id="p-1",
    reservation_id="r-1",
    launch_index=0,
    image_id="ami-1",
    instance_type="m1.small",
    zone="z",
    region="r",
    hostname="h",
)
NETWORK = NetworkSpec(
    network_id="subnet-1",
    vpc_id="vpc-1",
    type="flat",
    cidr="10.0.0.0/24",
    gateway="10.0.0.1",
    bridge="anbr0",
)
PORT = PortSpec(
    port_id="eni-0123456789abcdef0",
    instance_id="i-1",
    device_index=0,
    mac="06:a0:00:00:00:01",
    network_id="subnet-1",
    addresses=("10.0.0.2",),
    hostname="h",
    group_ids=(),
)


class TestNodeSide:
    @pytest.mark.parametrize(
        ("port_id", "tap"), [(PORT.port_id, "tap0"), ("eni-other", tap_name(PORT.port_id))]
    )
    def test_a_tap_that_the_firewall_would_not_know_is_refused(
        self, port_id: str, tap: str
    ) -> None:
        hooks = dict.fromkeys(hook_names("appliance.network"))
        answer = AttachedPort(port_id=port_id, network_id="subnet-1", tap=tap)
        driver = Network("wrong", filling(**{**hooks, "network_attach": answer}))
        with pytest.raises(PluginError, match=f"made '{tap}' .*network subnet-1"):
            driver.attach(NETWORK, PORT)

    @pytest.mark.parametrize(
        ("path", "is_inside"),
        [
            ("/state/i-1/seed.iso", True),
            ("/state/i-1/../i-2/seed.iso", False),
            ("/state/i-10/seed.iso", False),
            ("seed.iso", False),
        ],
    )
    def test_disks_of_an_injection_are_the_instances_own(self, path: str, is_inside: bool) -> None:
        request = InjectionRequest(
            instance_id="i-1",
            directory="/state/i-1",
            root_disk=DiskAttachment(path="/state/i-1/disk", format="qcow2", target="vda"),
            metadata=METADATA,
            networks=(),
            ports=(),
        )
        disks = (DiskAttachment(path=path, format="raw", target="vdb"),)
        answer = InjectionResult(summary="done", disks=disks)
        driver = Injection("some", filling(injection_inject=answer, injection_remove=None))
        if is_inside:
            assert driver.inject(request) == answer
        else:
            with pytest.raises(PluginError, match="outside /state/i-1"):
                driver.inject(request)


class TestContract:
    @pytest.mark.parametrize("group", sorted(GROUPS))
    def test_a_facade_calls_the_hooks_of_each_group(self, group: str) -> None:
        facades = [*NamedPlugin.__subclasses__(), *Driver.__subclasses__()]
        assert group in [facade.group for facade in facades]

    @pytest.mark.parametrize("group", sorted(GROUPS))
    def test_only_broadcasts_have_many_answers(self, group: str) -> None:
        for name in hook_names(group):
            marks = vars(GROUPS[group])[name].appliance_spec
            assert marks.get("firstresult", False) == (group != "appliance.observer")
