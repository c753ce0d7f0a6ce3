"""Pictures from noise: the objective, what trained models are judged by, and pictures for a user.

Shapes: B pictures, C channels, H height, W width or places for pieces, E experts, G bins of noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import MeanMetric, MetricCollection

from zoo import config as zc
from zoo.images import grid, write_image
from zoo.spec import ZooError
from zoo.train.sampling import spread
from zoo.train.task import Batch, Loss, Task
from zoo_diffusion.data.pictures import pieces
from zoo_diffusion.objectives import Objective
from zoo_diffusion.samplers import Sampler
from zoo_diffusion.sampling import progress, sample, to_pixels
from zoo_diffusion.tasks.judge import EPOCHS, halves, stacked, train_judge
from zoo_diffusion.tasks.routing import BINS, plot_routing, routing_by_noise

GOLDEN = (math.sqrt(5) - 1) / 2
MOST = 2**32 - 1
SHOWN = 10
"""Pictures of a row, or captions, that are shown after a training."""


class Drawn(NamedTuple):
    """What `Generation.predict` returns: pictures (B, H, W, 3) in 8 bits, and what each was to show."""

    pixels_NHWC: NDArray[np.uint8]
    prompts: list[str]
    columns: int
    notes: list[str]


class Generation(Task):
    """Denoising, then sampling with classifier-free guidance.

    Args (config):
        objective, sampler: how noise is added and taken away.
        space: where that happens, among pixels or in an autoencoder's latents.
        guidance: 1 is none.
        drop: share of training pictures whose condition is hidden.
        drawn: how many pictures an evaluation draws at most.
        judge: the split that the judge learns from; ``val`` keeps it apart from what the model has seen.
        judge_epochs: how often it sees that split.
    """

    monitor = "loss"
    sampled = ("agreement", "frechet")

    @dataclass
    class Config:
        objective: Any = zc.part("objective", "diffusion/rectified_flow")
        sampler: Any = zc.part("sampler", "diffusion/heun", steps=10)
        space: Any = zc.part("space", "diffusion/pixels")
        guidance: float = 1.5
        drop: float = 0.1
        drawn: int = 512
        judge: str = "train"
        judge_epochs: int = EPOCHS

        def __post_init__(self) -> None:
            zc.at_least(1, self, "drawn", "judge_epochs")
            zc.at_least(0, self, "guidance", "drop")
            if self.judge not in ("train", "val"):
                raise ZooError(f"judge={self.judge} must be train or val: it learns from no test picture")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.objective: Objective = zc.build("objective", config.objective)
        self.sampler: Sampler = zc.build("sampler", config.sampler)
        self.space = zc.build("space", config.space)

    def match(self, model: Any, data: Any, trained: Mapping[str, Any]) -> None:
        """Raises `ZooError` when pictures or conditions are not of the model's kind."""
        found, c = data.preprocessing, model.config
        channels, size = self.space.shape(found["channels"], found["size"])
        if (channels, size) != (c.channels, c.image_size):
            remedy = f"set model.channels={channels} model.image_size={size}, or data.size"
            raise ZooError(
                f"the data are {channels} channel{'s' if channels > 1 else ''} of {size} x {size} and the model takes "
                f"{c.channels} of {c.image_size} x {c.image_size}; "
                f"{'choose data like those it was trained on' if trained else remedy}"
            )
        condition = c.condition or {"name": None}
        kind = {"diffusion/label": "classes", "diffusion/text": "text"}.get(condition["name"])
        if kind and kind not in found:
            there = "captions" if "text" in found else "classes"
            wanted = "diffusion/text" if "text" in found else "diffusion/label"
            raise ZooError(f"the data have {there}, which the model cannot read; set model.condition.name={wanted}")
        if kind == "classes":
            names, known = found["classes"], trained.get("classes")
            if len(names) > condition["num_classes"] or (known and known != names):
                was = f"{', '.join(known[:5])}, ..." if known else f"{condition['num_classes']} of them"
                raise ZooError(
                    f"the data have {len(names)} classes ({', '.join(names[:5])}, ...) and the model was made for "
                    f"{was}; set model.condition.num_classes={len(names)} and train anew"
                )
        if kind == "text" and any(condition[key] != found["text"][key] for key in ("buckets", "length")):
            raise ZooError(
                f"captions become {found['text']} and the model reads buckets={condition['buckets']} "
                f"length={condition['length']}; make data.text and model.condition equal"
            )

    # -- training ----------------------------------------------------------------------------------------------------

    def loss(self, model: Any, batch: Batch) -> Loss:
        x = self.space.encode(batch["image"])
        time_B = self.objective.times(torch.rand(len(x), device=x.device))
        condition = known(batch)
        if condition is not None and model.condition is not None and model.training:
            hidden_B = torch.rand(len(x), device=x.device) < self.config.drop
            hidden = hidden_B.view(-1, *[1] * (condition.dim() - 1))
            condition = torch.where(hidden, model.condition.nothing(condition), condition)
        loss_B, routing = self._losses(model, x, torch.randn_like(x), time_B, condition)
        return Loss(loss_B.mean(), routing)

    def _losses(
        self, model: Any, x: Tensor, noise: Tensor, time_B: Tensor, condition: Tensor | None
    ) -> tuple[Tensor, Any]:
        routing: list[Any] = []
        domain_B = (self.objective.level(time_B) * BINS).long().clamp(0, BINS - 1)

        def predict(noisy: Tensor, time: Tensor) -> Tensor:
            out = model(noisy, time, condition, domain_B)
            routing.append(out.routing)
            prediction: Tensor = out.prediction_BCHW
            return prediction

        return self.objective.losses(predict, x, noise, time_B), routing[0]

    def metrics(self) -> MetricCollection:
        """``loss``: the mean over every picture's own noise and time, which are always the same."""
        return MetricCollection({"loss": MeanMetric()})

    def update(self, metrics: MetricCollection, model: Any, batch: Batch) -> None:
        x, index_B = self.space.encode(batch["image"]), batch["index"].tolist()
        uniform_B = torch.tensor([(0.5 + index * GOLDEN) % 1 for index in index_B], device=x.device)
        drawn = [torch.randn(x.shape[1:], generator=torch.Generator().manual_seed(index)) for index in index_B]
        noise, time_B = torch.stack(drawn).to(x), self.objective.times(uniform_B)
        metrics["loss"].update(self._losses(model, x, noise, time_B, known(batch))[0])

    # -- what it draws -----------------------------------------------------------------------------------------------

    def assess(self, model: Any, data: Any, split: str, most: int | None) -> dict[str, float]:
        """Pictures drawn for what is known of the split's, judged by a network that learned from real ones alone.

        ``agreement``: the judge sees the class that was asked for, or ranks the caption first among 32;
        ``agreement_real``: the same of the real pictures. ``frechet``: between half the drawn pictures and the other
        half of the real ones, in the judge's 32 features, the variance of a real picture's being 1 each on average;
        ``frechet_floor``: between the halves of the real ones, which neither model nor judge learned from.
        """
        dataset, found = data.split(split), data.preprocessing
        rows = spread(len(dataset), min(self.config.drawn, most or len(dataset), len(dataset)))
        if model.condition is None or len(rows) < 8:
            return {}
        name = "text" if "text" in found else "label"
        seen = data.split(self.config.judge)
        judge = train_judge(
            *stacked(seen, name, list(range(len(seen)))),
            classes=len(found.get("classes", ())),
            buckets=found.get("text", {}).get("buckets", 0),
            epochs=self.config.judge_epochs,
        )
        real, condition = stacked(dataset, name, rows)
        with progress("drawing", len(rows) * self.sampler.evaluations) as tick:
            drawn = self._draw(model, condition, len(rows), tick)
        drawn_NF, real_NF = judge.features(drawn), judge.features(real)
        drawn_NF, real_NF = (each / real_NF.var(0).mean().sqrt() for each in (drawn_NF, real_NF))
        return {
            "agreement": float(judge.right(drawn, condition).mean()),
            "agreement_real": float(judge.right(real, condition).mean()),
            "frechet": halves(drawn_NF, real_NF),
            "frechet_floor": halves(real_NF, real_NF),
        }

    def _draw(self, model: Any, condition: Tensor | None, count: int, tick: Any, **options: Any) -> Tensor:
        """Pictures (B, C, H, W) from -1 to 1, in the 8-bit steps of a file, on the CPU. ``options`` are `sample`'s."""
        options = {"guidance": self.config.guidance, **options}
        z = sample(model, self.objective, self.sampler, condition, count, tick=tick, **options)
        return (((self.space.decode(z).clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1).cpu()

    def _using(self, model: Any, inputs: Mapping[str, Any]) -> Generation:
        """The task with the parts that a user asks for; itself when all is as it was saved."""
        chosen: dict[str, Any] = {}
        for kind in ("objective", "sampler"):
            if (name := inputs[kind]) is not None:
                chosen[kind] = {"name": name if "/" in str(name) else f"diffusion/{name}"}
        if inputs["steps"] is not None:
            base = chosen.get("sampler", self.config.sampler)
            chosen["sampler"] = {**base, "steps": whole("steps", inputs["steps"], 1)}
        if inputs["autoencoder"] is not None:
            chosen["space"] = {"name": "diffusion/diffusers", "path": str(inputs["autoencoder"])}
        space = chosen.get("space", self.config.space)
        if model.config.channels not in (1, 3) and space["name"] == "diffusion/pixels":
            raise ZooError(
                f"the model draws latents of {model.config.channels} channels, no pixels; set autoencoder=FOLDER, an "
                "AutoencoderKL of diffusers"
            )
        if not chosen:
            return self
        node = zc.resolve_part("task", {"name": "diffusion/generation", **asdict(self.config), **chosen}, "task")
        using: Generation = zc.build("task", node)
        return using

    def predict(self, model: Any, preprocessing: Mapping[str, Any], inputs: Mapping[str, Any]) -> Drawn:
        """Pictures of a prompt, or of what the model knows."""
        n, seed = whole("n", inputs["n"], 1), whole("seed", inputs["seed"], 0)
        using = self._using(model, inputs)
        guidance = self.config.guidance if inputs["guidance"] is None else inputs["guidance"]
        if isinstance(guidance, bool) or not isinstance(guidance, int | float) or not 0 <= guidance < math.inf:
            raise ZooError(f"guidance={guidance!r} must be a number from 0 on; 1 is none")
        notes: list[str] = []
        condition, prompts = self._asked(model, preprocessing, inputs["prompt"], n, notes)
        with progress("drawing", n * using.sampler.evaluations) as tick:
            drawn = using._draw(model, condition, n, tick, guidance=float(guidance), seed=seed)
        if not drawn.isfinite().all():
            raise ZooError("the pictures are not finite: the weights are damaged, or of another objective; train on")
        return Drawn(to_pixels(drawn), prompts, _columns(n, len(set(prompts))), notes)

    def _asked(
        self, model: Any, preprocessing: Mapping[str, Any], prompt: str | None, n: int, notes: list[str]
    ) -> tuple[Tensor | None, list[str]]:
        """The condition of each picture, and what it is called."""
        if model.condition is None:
            if prompt:
                raise ZooError("the model knows no prompt: it was trained without a condition; leave prompt=... out")
            return None, ["" for _ in range(n)]
        asked = None if prompt is None else str(prompt).strip()
        text = preprocessing.get("text")
        count = getattr(model.condition.config, "num_classes", 0)
        classes = preprocessing.get("classes") or [str(k) for k in range(count)]
        if asked == "":
            notes.append("the prompt is empty: pictures of anything, without guidance")
            return model.condition.nothing(model.condition.examples(n)), ["" for _ in range(n)]
        if text is None:
            names = [asked] if asked in classes else [each.strip() for each in (asked or "").split(",") if each.strip()]
            for each in names:
                if each not in classes:
                    more = f" and {len(classes) - 20} more" if len(classes) > 20 else ""
                    raise ZooError(f"no class '{each}'; the classes are {', '.join(classes[:20])}{more}")
            chosen = [(names or classes)[k % len(names or classes)] for k in range(n)]
            return torch.tensor([classes.index(each) for each in chosen]), chosen
        examples = preprocessing.get("examples") or ["anything"]
        chosen = [asked] * n if asked else [examples[k % len(examples)] for k in range(n)]
        if asked is None:
            notes.append(f"no prompt=...: pictures of captions it was trained on ({', '.join(examples[:3])}, ...)")
        rows = [pieces(each, **text) for each in chosen]
        if asked and not any(rows[0]):
            raise ZooError(f"prompt={asked!r} has no word in it; write what the picture is to show")
        return torch.tensor(rows), chosen

    def write(self, result: Drawn, out: Path) -> list[Path]:
        """``grid.png``, enlarged where the pictures are small, each picture as it is, and ``prompts.txt``."""
        out.mkdir(parents=True, exist_ok=True)
        files = [write_image(sheet(result.pixels_NHWC, result.columns), out / "grid.png")]
        width = len(str(len(result.pixels_NHWC) - 1))
        for place, pixels_HWC in enumerate(result.pixels_NHWC):
            files.append(write_image(pixels_HWC, out / f"{place:0{width}}.png"))
        (out / "prompts.txt").write_text("".join(f"{prompt}\n" for prompt in result.prompts), encoding="utf-8")
        return [*files, out / "prompts.txt"]

    def show(self, model: Any, data: Any, out: Path) -> list[Path]:
        """``samples.png``: a column a class, or a row of captions; and ``routing_by_noise.png``."""
        preprocessing = data.preprocessing
        classes = preprocessing.get("classes", ())
        # As many rows as make a sheet, of at most 100 pictures.
        columns = min(SHOWN, len(classes) or SHOWN)
        n = columns * max(1, min(3, 100 // columns))
        names: list[str] = []
        with torch.no_grad(), progress("drawing", n * self.sampler.evaluations) as tick:
            condition, names = self._asked(model, preprocessing, None, n, [])
            drawn = self._draw(model, condition, n, tick)
            files = [write_image(sheet(to_pixels(drawn), columns), out / "samples.png")]
            counts = routing_by_noise(self, model, data)
        (out / "samples.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
        return [*files, out / "samples.txt", *plot_routing(counts, out / "routing_by_noise.png")]

    def plot(self, model: Any, data: Any, out: Path) -> list[Path]:
        """As `show`."""
        return self.show(model, data, out)


def known(batch: Batch) -> Tensor | None:
    """The condition in a batch."""
    return batch.get("text", batch.get("label"))


def whole(name: str, value: Any, least: int) -> int:
    """Raises `ZooError` unless it is a whole number from ``least`` to `MOST`."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MOST:
        raise ZooError(f"{name}={value!r} must be a whole number from {least} to {MOST:,}")
    return value


def sheet(pixels_NHWC: NDArray[np.uint8], columns: int) -> NDArray[np.uint8]:
    """A grid, small pictures enlarged to about 64 pixels each."""
    return grid(pixels_NHWC, columns, scale=max(1, 64 // pixels_NHWC.shape[1]))


def _columns(n: int, kinds: int) -> int:
    """A column a kind where there are several, else nearly a square."""
    return kinds if 1 < kinds <= 16 else math.ceil(math.sqrt(n))
