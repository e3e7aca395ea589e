"""The training clients of one run over the Tinker SDK: made afresh, or from what the run had saved.

Knows no learner; a learner asks for the clients that it needs by name, and the runner saves them all.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping

import tinker
from tinker.lib.client_connection_pool_type import ClientConnectionPoolType

from loreloop.learn.corrections import Rule
from loreloop.learn.plan import Plan
from loreloop.protocol.errors import BadRequest

LOG = logging.getLogger(__name__)
POLICY = "policy"  # the client whose weights a run is for


class Clients:
    """`states` are the paths of what an earlier part of the run has saved, by the clients' names."""

    def __init__(self, service: tinker.ServiceClient, plan: Plan, states: Mapping[str, str] | None = None) -> None:
        self.service, self.plan, self.states = service, plan, dict(states or {})
        self.made: dict[str, tinker.TrainingClient] = {}

    async def training(self, name: str = POLICY) -> tinker.TrainingClient:
        """The client of this name; it goes on from its saved state, optimizer included, where the run has one."""
        if name not in self.made:
            self.made[name] = await self._made(name)
        return self.made[name]

    async def _made(self, name: str) -> tinker.TrainingClient:
        plan = self.plan
        if saved := self.states.get(name):
            return await self.service.create_training_client_from_state_with_optimizer(saved)
        if plan.start is not None and name == POLICY:
            return await self.service.create_training_client_from_state(plan.start)
        return await self._fresh(plan.rank)

    async def _fresh(self, rank: int) -> tinker.TrainingClient:
        plan = self.plan
        return await self.service.create_lora_training_client(
            plan.base_model,
            rank=rank,
            seed=plan.seed,
            train_mlp=plan.train_mlp,
            train_attn=plan.train_attn,
            train_unembed=plan.train_unembed,
        )

    async def reference(self) -> tinker.TrainingClient:
        """Weights as they are before the run's first step, for passes forward only: nobody trains or saves this client.
        It computes as the policy's does, so that both say the same as long as nothing was learned."""
        if self.plan.start is not None:
            return await self.service.create_training_client_from_state(self.plan.start)
        return await self._fresh(rank=1)  # a new adapter adds nothing yet, whatever its rank

    async def save(self, name: str) -> dict[str, str]:
        """Saves the state of every client under a name; gives their paths."""
        # All are sent before one is waited for.
        saving = [client.save_state(name, overwrite=True) for client in self.made.values()]
        saved = await asyncio.gather(*(each.result_async() for each in saving))
        return {client: each.path for client, each in zip(self.made, saved, strict=True)}

    async def publish(self, name: str) -> str:
        """Saves the policy's weights for sampling under a name; gives their path."""
        return (await self.made[POLICY].save_weights_for_sampler(name)).path

    async def forget(self, states: Mapping[str, str]) -> None:
        """Deletes saved states that no resumption needs any more."""
        await forgotten(self.service, states.values())


async def forgotten(service: tinker.ServiceClient, paths: Iterable[str]) -> None:
    """Deletes saved weights. What is gone already, or what the server will not give up, is no reason to end a run."""
    # Over the service's own connections; its method that gives this client is going out of use.
    rest = tinker.RestClient(service.holder)
    for path in paths:
        try:
            await rest.delete_checkpoint_from_tinker_path(path)
        except (tinker.APIStatusError, tinker.APIConnectionError):
            continue


async def window_of(service: tinker.ServiceClient, base_model: str) -> int | None:
    """The most tokens of a base model, or None where the server does not say. BadRequest where it serves no such."""
    models = (await tinker.RestClient(service.holder).get_server_capabilities()).supported_models
    for model in models:
        if model.model_name == base_model:
            return model.max_context_length
    served = ", ".join(sorted(model.model_name for model in models if model.model_name))
    raise BadRequest(f"The server does not serve {base_model!r}; it serves {served or 'nothing'}.")


async def sampled_outside(service: tinker.ServiceClient, base_model: str) -> bool:
    """Whether samplers that are none of the server's own draw for a base model. Other servers do not say."""

    async def ask() -> object:
        with service.holder.aclient(ClientConnectionPoolType.TRAIN) as client:
            # Read as it comes: the SDK's own types leave out what it does not know.
            return await client.get("/api/v1/get_server_capabilities", cast_to=object)

    # The SDK's connections belong to a loop of its own.
    match await service.holder.run_coroutine_threadsafe(service.holder.execute_with_retries(ask)):
        case {"supported_models": [*models]}:
            told = [model for model in models if isinstance(model, dict) and model.get("model_name") == base_model]
            return any(model.get("sampled_outside") is True for model in told)
    return False


async def correction_needed(service: tinker.ServiceClient, base_model: str) -> Rule:
    """What is to correct samples of a base model: `truncate`, which bounds a token's weight, where samplers outside
    draw, since they round otherwise than the engine that trains; `none` where the server's own do."""
    if not await sampled_outside(service, base_model):
        return "none"
    LOG.info("samplers outside draw for %s: --correction truncate", base_model)
    return "truncate"


def adam_of(plan: Plan, learning_rate: float) -> tinker.AdamParams:
    """The numbers of one optimizer step."""
    return tinker.AdamParams(
        learning_rate=learning_rate,
        beta1=plan.beta1,
        beta2=plan.beta2,
        eps=plan.eps,
        weight_decay=plan.weight_decay,
        grad_clip_norm=plan.grad_clip_norm,
    )
