"""``zoo train``: a recipe to a run folder."""

from __future__ import annotations

from typing import Annotated

import typer

from zoo.cli.common import Overrides


def train_command(
    recipe: Annotated[str, typer.Argument(help="plugin/name (see `zoo list`) or the path of a YAML file.")],
    overrides: Overrides = None,
    cfg: Annotated[bool, typer.Option("--cfg", help="Print the resolved config and stop.")] = False,
    fast_dev_run: Annotated[bool, typer.Option("--fast-dev-run", help="One tiny step of everything.")] = False,
    out: Annotated[str | None, typer.Option(help="Folder for run folders.", show_default="runs")] = None,
) -> None:
    """Train a recipe. Any key of `--cfg` can be set: train.steps=500 data=csv data.path=my.csv.

    resume=last goes on with the latest run of the recipe, resume=FOLDER with that one.
    """
    from zoo.train.recipe import read_recipe, run_name

    tree = read_recipe(recipe, [*(overrides or []), *([f"out={out}"] if out else [])])
    if cfg:
        from omegaconf import OmegaConf

        typer.echo(OmegaConf.to_yaml(OmegaConf.create(tree)), nl=False)
        return
    from zoo.cli.summary import after_training
    from zoo.spec import ZooError
    from zoo.train.run import rank, resume_tree, run_folder, train

    folder = run_folder(tree["out"], run_name(recipe), tree["resume"])
    if tree["resume"]:
        asked, tree = tree["model"]["name"], resume_tree(folder, overrides or [])
        if tree["model"]["name"] != asked:
            raise ZooError(
                f"'{folder}' is a run of {tree['model']['name']}, not of {asked}; name a recipe of the former"
            )
    train(tree, folder, fast_dev_run=fast_dev_run)
    if rank() == 0:
        after_training(folder)
