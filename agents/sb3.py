"""Stable-Baselines3, unmodified, on a language model: a policy, a vector environment and a rollout buffer for it.

    from stable_baselines3 import PPO
    from textenv.agents.sb3 import CausalLMPolicy, EpisodeBuffer, TextVecEnv

    envs = TextVecEnv(gymnasium.make_vec("textenv/MovieReview-v0", num_envs=64))
    agent = PPO(CausalLMPolicy, envs, rollout_buffer_class=EpisodeBuffer, n_steps=24, batch_size=768)
    agent.learn(50_000)

The logits of the language model's head are the action logits, and a head on its trunk gives the values. The environment
recognizes the policy that acts in it, so that the reward holds the KL, whether SB3 steps through ``TextVecEnv`` or
through its own ``DummyVecEnv``; in other processes (``SubprocVecEnv``) it cannot, and the policy refuses to go on.
Acting costs one token a row (the prefix cache), and ``EpisodeBuffer`` has an update read each episode once instead of
every prefix of it.

``agent.save`` writes SB3's own zip: settings (in part pickled, so load only what you trust), the policy's weights and
the optimizer's state. Neither the reference nor the reward is in it. What other programs read is
``agent.policy.text.save(folder)``: Hugging Face format and safetensors, nothing pickled.

For sb3-contrib's ``MaskablePPO`` see ``textenv.agents.sb3_contrib``.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray
from stable_baselines3.common.buffers import DictRolloutBuffer
from stable_baselines3.common.distributions import CategoricalDistribution
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices, VecEnvObs, VecEnvStepReturn

from textenv.models import acting
from textenv.models.causal_lm import CausalLM
from textenv.models.loading import resolve_model
from textenv.models.policy import TextPolicy, observation_arrays
from textenv.rollouts.collect import refuse_single_rows, text_env
from textenv.types import FloatArray, IntArray, Observation, TextEnvError
from textenv.validation import Positive, validated

__all__ = ["CausalLMPolicy", "EpisodeBuffer", "TextActorCritic", "TextVecEnv", "TokenFeatures", "WholeEpisodes"]

TensorDict = dict[str, torch.Tensor]


class TextActorCritic(BasePolicy):
    """What the policies for SB3 and for sb3-contrib have in common: a ``TextPolicy`` behind SB3's names.

    Nothing is initialized anew, dropout stays off, and only the policy is in the optimizer.

    Attributes:
        text: The language model and its value head.
    """

    @validated
    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        *,
        model: Any = "bundled",
        temperature: Positive = 1.0,
        embedding_rate: Positive = 1.0,
        value_rate: Positive = 1.0,
        optimizer_class: type[torch.optim.Optimizer] = torch.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        use_sde: bool = False,
    ) -> None:
        """Load the model to start from. SB3 gives the first three arguments; the others are its ``policy_kwargs``.

        Args:
            observation_space: That of a text environment.
            action_space: Its tokens.
            lr_schedule: SB3's learning rate.
            model: The environment's model: ``"bundled"``, ``"smollm2"``, a folder or a Hugging Face id. A name, since
                SB3 saves it.
            temperature: That of the environment.
            embedding_rate: Learning rate of the token embeddings and of a head tied to them, as a multiple of SB3's
                (``PPOConfig`` has 8).
            value_rate: The same of the value head (``PPOConfig`` has 30).
            optimizer_class: As everywhere in SB3.
            optimizer_kwargs: As everywhere in SB3; None for its ``eps=1e-5``.
            use_sde: SB3's; there is no state-dependent noise over tokens.

        Raises:
            TextEnvError: An argument is not what is expected, or the spaces belong to another model.
        """
        if use_sde:
            raise TextEnvError("use_sde=True: noise for continuous actions; tokens are drawn from their distribution.")
        if not isinstance(model, str):
            raise TextEnvError(
                f"policy_kwargs has a model of type {type(model).__name__}: expected a name or a folder, because SB3 "
                "saves it. Save the model into a folder, model.save_pretrained and tokenizer.save_pretrained, and give "
                "that."
            )
        if optimizer_kwargs is None:
            optimizer_kwargs = {"eps": 1e-5} if optimizer_class is torch.optim.Adam else {}
        BasePolicy.__init__(
            self,
            observation_space,
            action_space,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
        )
        model = resolve_model(model)  # it is saved, and loaded from wherever
        self._own = {
            "model": model, "temperature": temperature, "embedding_rate": embedding_rate, "value_rate": value_rate
        }  # fmt: skip
        lm = CausalLM.from_pretrained(model)
        _check_spaces(observation_space, action_space, lm, model)
        self.text = TextPolicy(lm, temperature=temperature)
        self.optimizer = self._new_optimizer(lr_schedule(1), embedding_rate, value_rate)

    def _new_optimizer(self, rate: float, embedding_rate: float, value_rate: float) -> torch.optim.Optimizer:
        lm, value_head = self.text.model, self.text.value_head
        assert value_head is not None
        multiples = dict.fromkeys(self.parameters(), 1.0)
        for module in (lm.get_input_embeddings(), lm.get_output_embeddings()):
            assert isinstance(module, torch.nn.Module)
            multiples |= dict.fromkeys(module.parameters(), embedding_rate)
        multiples |= dict.fromkeys(value_head.parameters(), value_rate)
        groups = [
            {"params": [p for p, its in multiples.items() if its == multiple], "multiple": multiple}
            for multiple in sorted(set(multiples.values()))
        ]
        make: Any = self.optimizer_class
        optimizer: torch.optim.Optimizer = make(groups, lr=rate, **self.optimizer_kwargs)

        # SB3 writes one rate into all groups before each update, so the multiples come in around each step.
        def before(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            for group in optimizer.param_groups:
                group["lr"] *= group["multiple"]

        def after(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            for group in optimizer.param_groups:
                group["lr"] /= group["multiple"]

        optimizer.register_step_pre_hook(before)
        optimizer.register_step_post_hook(after)
        return optimizer

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {
            "observation_space": self.observation_space,
            "action_space": self.action_space,
            "lr_schedule": self._dummy_schedule,
            "optimizer_class": self.optimizer_class,
            "optimizer_kwargs": self.optimizer_kwargs,
            **self._own,
        }

    # -- acting: without gradients, through the prefix cache -------------------------------------------------------

    def forward(
        self, obs: Any, deterministic: bool = False, action_masks: NDArray[Any] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Choose the next tokens, without gradients (``evaluate_actions`` has them).

        Args:
            obs: Observations, batched.
            deterministic: Take the likeliest token instead of drawing one.
            action_masks: Which tokens may be drawn, shape ``(batch, vocab_size)``; None for all.

        Returns:
            Actions ``(batch,)``, values ``(batch, 1)`` and log-probabilities of the actions in nats ``(batch,)``.

        Raises:
            TextEnvError: The environment has taken the actions before these without their log-probabilities.
        """
        read = _arrays(obs)
        acting.refuse_unseen(*observation_arrays(read))
        masks = None if action_masks is None else np.asarray(action_masks).reshape(len(read["input_ids"]), -1) > 0
        uniform = None  # SB3 seeds torch's global generator
        if not deterministic:
            uniform = torch.rand(len(read["input_ids"]), 1, device=self.device)
        actions, values = self.text.act(read, masks=masks, uniform=uniform)
        log_probs = self.text.action_log_prob(actions)
        tensors = (torch.from_numpy(array).to(self.device) for array in (actions, values[:, None], log_probs))
        return next(tensors), next(tensors), next(tensors)

    def _predict(
        self, observation: Any, deterministic: bool = False, action_masks: NDArray[Any] | None = None
    ) -> torch.Tensor:
        return self.forward(observation, deterministic, action_masks)[0]

    def predict_values(self, obs: Any) -> torch.Tensor:
        """Return ``V(s)`` without gradients, shape ``(batch, 1)``."""
        read = _arrays(obs)
        values = self.text.values(read, np.arange(len(read["input_ids"])))
        return torch.from_numpy(values).to(self.device)[:, None]

    @property
    def acted(self) -> acting.Act | None:
        """What it has read and drawn last; None before it has acted."""
        return self.text.acted

    def action_log_prob(self, actions: IntArray) -> FloatArray:
        """Return log pi of ``actions`` in nats at the states it has just acted in, shape ``(batch,)``."""
        return self.text.action_log_prob(actions)

    def action_log_probs(self) -> FloatArray:
        """Return log pi of the whole vocabulary there, shape ``(batch, vocab_size)``."""
        return self.text.action_log_probs()

    # -- learning: with gradients, each text once -------------------------------------------------------------------

    def evaluate_actions(
        self, obs: Any, actions: torch.Tensor, action_masks: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Evaluate actions, with gradients.

        Observations that are beginnings of one text, as those of an episode are, are read off one forward of that text.

        Args:
            obs: Observations, batched, in any order.
            actions: The tokens that followed, shape ``(batch,)``.
            action_masks: Which tokens could be drawn, shape ``(batch, vocab_size)``; None for all.

        Returns:
            Values ``(batch, 1)``, log-probabilities of the actions and entropies in nats, both ``(batch,)``.
        """
        hidden = self._hidden(obs)
        distribution = self._distribution(hidden, action_masks)
        value_head = self.text.value_head
        assert value_head is not None
        values = value_head(hidden.to(value_head.weight.dtype)).float()
        return values, distribution.log_prob(actions), distribution.entropy()

    def get_distribution(self, obs: Any, action_masks: Any = None) -> Any:
        """Return SB3's distribution of the next tokens, with gradients; arguments as of ``evaluate_actions``."""
        return self._distribution(self._hidden(obs), action_masks)

    def _hidden(self, obs: TensorDict) -> torch.Tensor:
        """Return the hidden states ``(batch, hidden_size)`` at the last token of each observation."""
        ids, lengths = observation_arrays(_arrays(obs))
        texts, places = _shared_texts(ids, lengths)
        width = int(lengths.max())
        read, sizes, rows, last = (
            torch.from_numpy(array).to(self.device)
            for array in (ids[texts, :width], lengths[texts], places, lengths - 1)
        )
        return self.text.lm.hidden_states(read, sizes)[rows, last]

    def _distribution(self, hidden: torch.Tensor, masks: Any) -> Any:
        logits = self.text.lm.head(hidden) / self.text.temperature
        return self._over(logits, masks)

    def _over(self, logits: torch.Tensor, masks: Any) -> Any:
        raise NotImplementedError


class CausalLMPolicy(TextActorCritic, ActorCriticPolicy):
    """A causal language model as the policy of SB3's ``PPO`` and ``A2C``; ``TextActorCritic`` has the arguments."""

    def _over(self, logits: torch.Tensor, masks: Any) -> CategoricalDistribution:
        return CategoricalDistribution(logits.shape[-1]).proba_distribution(action_logits=logits)


class WholeEpisodes:
    """Put before a rollout buffer of SB3, it makes minibatches of whole episodes."""

    def get(self: Any, batch_size: int | None = None) -> Generator[Any, None, None]:
        """Yield the steps of the rollout once, in minibatches.

        The steps that an episode has in the rollout stay together, so that the policy reads its text once.

        Args:
            batch_size: Steps of a minibatch: on average, since episodes are not cut. None for one minibatch.
        """
        total = self.buffer_size * self.n_envs
        begins = np.array(self.episode_starts, dtype=bool).T.copy()
        begins[:, 0] = True
        segments = np.split(np.arange(total), np.flatnonzero(begins.ravel())[1:])
        if not self.generator_ready:
            next(super().get(1))  # type: ignore[misc]  # the first call brings the steps of each row together
        order = np.random.permutation(len(segments))  # noqa: NPY002 (the generator that SB3 seeds)
        sizes = np.array([len(segments[place]) for place in order])
        parts = max(1, round(total / (batch_size or total)))
        part = (np.cumsum(sizes) - sizes) * parts // total  # where its first step belongs
        for number in np.unique(part):
            yield self._get_samples(np.concatenate([segments[place] for place in order[part == number]]))


class EpisodeBuffer(WholeEpisodes, DictRolloutBuffer):
    """SB3's rollout buffer with minibatches of whole episodes: ``PPO(..., rollout_buffer_class=EpisodeBuffer)``."""


class TextVecEnv(VecEnv):
    """A native vector environment in the form that SB3 steps through.

    The environment recognizes the actions of a ``CausalLMPolicy``. With any other agent the behavior is taken as
    deterministic, log pi = 0, unless its policy is attached: ``text_vec_env.text_env.attach_policy(policy)``.

    Attributes:
        envs: The vector environment.
        text_env: The text environment inside its wrappers.
    """

    def __init__(self, envs: VectorEnv[Any, Any, Any]) -> None:
        """Take a vector environment.

        Args:
            envs: Made by ``gymnasium.make_vec`` from an id that starts with ``textenv/``; its ``autoreset_mode`` is
                ``SAME_STEP``, the default. Gymnasium's vector wrappers may be around it.

        Raises:
            TextEnvError: It is something else.
        """
        refuse_single_rows(envs)
        mode = envs.metadata.get("autoreset_mode")
        if mode is not AutoresetMode.SAME_STEP:
            raise TextEnvError(
                f"{envs} has autoreset_mode={mode}: expected a vector environment with AutoresetMode.SAME_STEP, "
                "because SB3 goes on with the next episode at once. Make it with gymnasium.make_vec(..., num_envs=8)."
            )
        self.envs = envs
        self.text_env = text_env(envs)
        self._actions: IntArray = np.zeros(0, dtype=np.int64)
        self._shown: Observation = {}
        super().__init__(envs.num_envs, envs.single_observation_space, envs.single_action_space)
        self.metadata["render_fps"] = envs.metadata["render_fps"]

    def reset(self) -> VecEnvObs:
        """Begin new episodes, with the seeds of ``seed`` and the options of ``set_options``, each used once.

        Raises:
            TextEnvError: The rows have options of different names.
        """
        names = {frozenset(options) for options in self._options}
        if len(names) > 1:
            raise TextEnvError(
                f"set_options gave the rows different options, {[*map(sorted, names)]}; give all the same."
            )
        options = {name: [row[name] for row in self._options] for name in names.pop()}
        seed: Any = None if all(seed is None for seed in self._seeds) else self._seeds
        self._shown, infos = self.envs.reset(seed=seed, options=options)
        self.reset_infos = [_row(infos, row) for row in range(self.num_envs)]
        self._reset_seeds()
        self._reset_options()
        return self._observations()

    def step_async(self, actions: NDArray[Any]) -> None:
        """Take the actions of the next ``step_wait``, token ids ``(num_envs,)``."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Append the tokens.

        Returns:
            Observations, rewards (float32), whether each row's episode is over, and a dict for each row: its ``info``,
            ``TimeLimit.truncated``, and of a finished episode ``terminal_observation``.
        """
        self._shown, rewards, terminations, truncations, infos = self.envs.step(self._actions)
        rows = []
        for row in range(self.num_envs):
            info = _row(infos, row)
            if "final_obs" in info:
                last, final = info.pop("final_obs"), info.pop("final_info", {})
                over = {"episode": info.pop("episode")} if "episode" in info else {}  # of RecordEpisodeStatistics
                self.reset_infos[row] = info
                info = {**final, **over, "terminal_observation": last}
            info["TimeLimit.truncated"] = bool(truncations[row] and not terminations[row])
            rows.append(info)
        return self._observations(), rewards.astype(np.float32), terminations | truncations, rows

    def close(self) -> None:
        """Close the environment."""
        self.envs.close()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return an attribute of the environment, which all rows share, once for each row."""
        return [getattr(self.envs, attr_name)] * len(self._rows(indices))

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of the environment, for all rows.

        Raises:
            TextEnvError: ``indices`` leaves rows out.
        """
        if len(self._rows(indices)) != self.num_envs:
            raise TextEnvError(
                f"set_attr({attr_name!r}, indices={indices}): the rows share their attributes; set it for all."
            )
        setattr(self.text_env, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method of the environment, once; what it returns for each row goes to the row, else all of it to all.

        ``env_method("action_masks")`` is what ``MaskablePPO`` asks for.
        """
        result = getattr(self.envs, method_name)(*method_args, **method_kwargs)
        each = isinstance(result, (np.ndarray, tuple, list)) and len(result) == self.num_envs
        return [result[row] if each else result for row in self._rows(indices)]

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """Return False for each row: no row is an environment of its own that could be wrapped."""
        return [False] * len(self._rows(indices))

    def get_images(self) -> Sequence[NDArray[Any] | None]:
        """Return a picture of each row's text with ``render_mode="rgb_array"``; None for each with any other."""
        if self.text_env.render_mode != "rgb_array":
            return [None] * self.num_envs
        pictures: Any = self.envs.render()
        return list(pictures)

    def _rows(self, indices: VecEnvIndices) -> list[int]:
        return list(self._get_indices(indices))

    def _observations(self) -> VecEnvObs:
        return {name: values.copy() for name, values in self._shown.items()}


class TokenFeatures(BaseFeaturesExtractor):
    """Token ids one by one as one-hot vectors, for SB3's own networks: they would read ids as quantities.

    For small vocabularies such as that of ``textenv/Exact-v0``: ``DQN("MultiInputPolicy", env,
    policy_kwargs={"features_extractor_class": TokenFeatures})``.
    """

    def __init__(self, observation_space: spaces.Space[Any]) -> None:
        """Read the sizes off the observation space of a text environment.

        Raises:
            TextEnvError: It is of another kind.
        """
        ids = _ids_space(observation_space)
        self._vocab_size = int(ids.high.max()) + 1
        super().__init__(observation_space, self._vocab_size * ids.shape[0])

    def forward(self, observations: TensorDict) -> torch.Tensor:
        """Return features ``(batch, time * vocab_size)``; those of padding are 0.

        Raises:
            TextEnvError: The observations are no token ids.
        """
        ids = observations["input_ids"]  # SB3 makes floats of whole numbers
        if ((ids != ids.round()) | (ids < 0) | (ids >= self._vocab_size)).any():
            raise TextEnvError(
                f"Observations are token ids, and these hold other numbers than 0 to {self._vocab_size - 1}: with "
                "VecNormalize use norm_obs=False."
            )
        ones = torch.nn.functional.one_hot(ids.long(), self._vocab_size)
        return (ones * observations["attention_mask"].long()[..., None]).flatten(1).float()


def _arrays(obs: Mapping[str, torch.Tensor]) -> Observation:
    return {name: values.cpu().numpy() for name, values in obs.items()}


def _shared_texts(ids: IntArray, lengths: IntArray) -> tuple[IntArray, IntArray]:
    """Find the texts that the others are beginnings of.

    Args:
        ids: Token ids, padded on the right, shape ``(batch, time)``.
        lengths: Tokens of each row, shape ``(batch,)``.

    Returns:
        The rows that are no beginning of another, one of each if some are the same, ``(texts,)``; and of every row,
        which of these it is a beginning of, ``(batch,)``.
    """
    count, width = ids.shape
    written = np.where(np.arange(width) < lengths[:, None], ids + 1, 0)
    # Bytes of big-endian numbers sort as the numbers do, so that a beginning stands right before what goes on from it.
    words = np.ascontiguousarray(written.astype(">u4")).view(f"S{4 * width}")[:, 0]
    order = np.argsort(words, kind="stable")
    here, following = written[order[:-1]], written[order[1:]]
    goes_on = ((here == following) | (here == 0)).all(axis=1)
    ends = np.flatnonzero(np.append(~goes_on, True))
    places = np.empty(count, dtype=np.int64)
    places[order] = np.searchsorted(ends, np.arange(count))
    return order[ends], places


def _row(infos: Mapping[str, Any], row: int) -> dict[str, Any]:
    """Return a row's part of a vector environment's infos; where entries of a nested one have no mask, all of them."""
    found = {}
    for name, values in infos.items():
        if name.startswith("_") or not infos.get(f"_{name}", np.ones(row + 1))[row]:
            continue
        value = _row(values, row) if isinstance(values, Mapping) else values[row]
        found[name] = value.item() if isinstance(value, np.generic) else value
    return found


def _ids_space(space: spaces.Space[Any]) -> spaces.Box:
    ids = space.get("input_ids") if isinstance(space, spaces.Dict) else None
    if not isinstance(ids, spaces.Box) or not isinstance(space, spaces.Dict) or "attention_mask" not in space.spaces:
        raise TextEnvError(f"The observation space is {space}: expected that of a text environment.")
    return ids


def _check_spaces(observations: spaces.Space[Any], actions: spaces.Space[Any], lm: CausalLM, model: str) -> None:
    _ids_space(observations)
    if not isinstance(actions, spaces.Discrete) or int(actions.n) != lm.vocab_size:
        raise TextEnvError(
            f"The action space is {actions}, but the model {model!r} has {lm.vocab_size} tokens: give the "
            "environment's own, policy_kwargs={'model': ...}."
        )
