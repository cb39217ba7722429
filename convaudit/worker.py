"""The worker process: imports torch at once, then audits one target for each JSON line it reads."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING

from convaudit.child import Channel
from convaudit.paths import hold_directory

if TYPE_CHECKING:
    from collections.abc import Callable

    from convaudit.result import TargetResult, TensorRow


def main() -> None:
    """Answer requests until the parent closes standard input."""
    hold_directory()
    channel = Channel()
    try:
        import torch  # noqa: F401
    except (ImportError, OSError) as error:
        channel.say(f"{type(error).__name__}: {error}".replace("\n", " ").encode())
        return
    channel.say(b"ready")
    from convaudit.footprint import Footprint
    from convaudit.pool import IMPORTED, Answer, spoken
    from convaudit.registry import LOAD_PROBLEMS

    def imported() -> None:
        channel.say(IMPORTED)

    footprint = Footprint()
    while True:
        request = json.loads(channel.get())
        _limit_memory(request.get("memory_limit"))
        state_dict: list[TensorRow] = []
        with footprint.watched():
            result = _answer(request, state_dict, imported)
        answer = Answer(result, footprint.sources(), bool(LOAD_PROBLEMS), state_dict)
        channel.say(spoken(answer))
        footprint.forget()


def _limit_memory(gigabytes: object) -> None:
    """Cap what this process may allocate beyond what it holds; where the system has no such limit, nothing is done."""
    if not isinstance(gigabytes, (int, float)):
        return
    try:
        import resource
    except ImportError:  # Windows
        return
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = int(gigabytes * 10**9)
    resource.setrlimit(resource.RLIMIT_DATA, (wanted if hard < 0 else min(wanted, hard), hard))


def _answer(request: dict[str, object], state_dict: list[TensorRow], imported: Callable[[], None]) -> TargetResult:
    import msgspec

    from convaudit.discovery import definition_of
    from convaudit.errors import MEMORY, ConvauditError, TargetError, first_line
    from convaudit.result import TargetFailure, failed_target
    from convaudit.versions import versions_of

    target = str(request["target"])
    sys.argv = [target]
    try:
        return _example(target, request) if request.get("rule_example") else _audit(target, request, state_dict, imported)
    except TargetError as error:
        path, line = (error.path, error.line) if error.path else definition_of(target) or (None, None)
        failure = TargetFailure(error.step, error.kind, str(error), path, line)
    except ConvauditError as error:
        failure = TargetFailure("input", type(error).__name__, str(error), None, None)
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        if os.environ.get("CONVAUDIT_DEBUG"):
            raise
        said = first_line(error)
        said = f"{target}: {said}" if said == MEMORY else f"convaudit broke on {target}: {type(error).__name__}: {said}"
        failure = TargetFailure("trace", type(error).__name__, said, None, None)
    return msgspec.structs.replace(failed_target(target, failure), versions=versions_of(None))


def _example(code: str, request: dict[str, object]) -> TargetResult:
    """The audit of a rule's own first BAD example."""
    from typing import Any, cast

    import torch

    from convaudit import registry
    from convaudit.engine import audit_model
    from convaudit.errors import TargetError
    from convaudit.settings import AuditSettings, TargetSettings

    examples = registry.rules()[code].bad()
    if not examples:
        raise TargetError("construct", f"{code} has no example to run", kind="LookupError")
    given = cast("dict[str, Any]", request["settings"])
    settings = AuditSettings(**{**given, "here": TargetSettings()})
    own = {name.replace("_", "-"): value for name, value in examples[0].settings.items()}
    settings.update(own, f"the example of {code}")
    settings = settings.for_target(code)
    with torch.no_grad():
        args = tuple(torch.empty(shape, device="meta") for shape in examples[0].inputs)
        return audit_model(examples[0].build(), args, {}, target=code, settings=settings)


def _audit(
    target: str, request: dict[str, object], state_dict: list[TensorRow], imported: Callable[[], None]
) -> TargetResult:
    from typing import Any, cast

    import torch

    from convaudit import inputs, targets
    from convaudit.accounting import state_dict_rows
    from convaudit.engine import audit_graph, audit_model
    from convaudit.errors import TargetError
    from convaudit.graph import tensors
    from convaudit.result import InputInfo
    from convaudit.settings import AuditSettings, TargetSettings
    from convaudit.symbolic import trace_symbolically
    from convaudit.tracer import unsized

    given_settings = cast("dict[str, Any]", request["settings"])
    here = TargetSettings(**given_settings.get("here", {}))
    settings = AuditSettings(**{**given_settings, "here": here})
    specs = cast("list[str]", request.get("input") or [])
    configured = here.input or settings.input or []
    if isinstance(configured, dict):
        configured = [f"{name}:{spec}" for name, spec in configured.items()]
    elif isinstance(configured, str):
        configured = [configured]
    given = inputs.given_inputs(specs, "option") if specs else None
    with torch.no_grad():
        built = targets.build(target, here.args, imported)
        model = built.model
        if getattr(model.forward, "__func__", None) is torch.nn.Module.forward:
            said = f"{target}: {type(model).__name__} has no forward: it is no model by itself"
            raise TargetError("construct", said, kind="TypeError")
        if request.get("state_dict"):
            state_dict += state_dict_rows(model)
        args: tuple[Any, ...]
        kwargs: dict[str, Any] = {}
        own = inputs.model_inputs(model)
        maker = request.get("input_from")
        if given:
            args, kwargs, infos = given
        elif maker:
            args, kwargs, infos = inputs.made_inputs(str(maker))
        elif configured:
            args, kwargs, infos = inputs.given_inputs(configured, "config")
        elif own:
            args, infos = own
        elif built.args:
            args = built.args
            infos = [InputInfo(list(t.shape), str(t.dtype)[6:], "model") for t in tensors(args)]
        else:
            try:
                args, infos = inputs.inferred_inputs(model)
            except TargetError as refused:
                symbolic = not isinstance(model, torch.jit.ScriptModule) and not unsized(model)
                if request.get("submodule") or not symbolic:
                    raise
                try:
                    graph = trace_symbolically(model, built.lines.named(model), str(refused))
                except TargetError:
                    raise refused from None
                return audit_graph(graph, ((), {}), target=target, settings=settings)
        batch = request.get("batch")
        if batch:
            args, kwargs, infos = inputs.with_batch(args, kwargs, infos, cast("int", batch))
        part = request.get("submodule")
        locations = built.lines.named(model)
        if part:
            try:
                child = model.get_submodule(str(part))
            except AttributeError as error:
                raise TargetError("input", f"{target} has no submodule {part!r}", kind="AttributeError") from error
            args, kwargs, infos = inputs.inputs_of(model, child, args, kwargs, str(part))
            model, locations = child, built.lines.named(child)
        result = audit_model(model, args, kwargs, target=target, settings=settings, inputs=infos, locations=locations)
    result.notes.extend(built.notes)
    return result


if __name__ == "__main__":
    main()
