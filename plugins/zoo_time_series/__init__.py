"""Forecasting with mixtures of experts: the manifest. Importing it needs no torch."""

from zoo.spec import API, DatasetSpec, Input, ModelSpec, PartSpec, Plugin, TaskSpec, Weights
from zoo_time_series.data.files import ETT, LONG_HORIZON, M4_FILES
from zoo_time_series.importers import MOIRAI_MOE, TIME_MOE

_TIME_MOE = "zoo_time_series.models.time_moe:TimeMoE"
_PAPER = "Time-MoE, arXiv:2409.16040"
_PUBLIC = "Time-300B"
_MOIRAI = "zoo_time_series.models.moirai_moe:MoiraiMoE"
_MOIRAI_PAPER = "Moirai-MoE, arXiv:2410.10469"
_LOTSA = "LOTSA"
_PATCH = "zoo_time_series.models.patch_encoder:PatchEncoder"
_HEADS = "zoo_time_series.blocks.heads"


def _etth1(model: str, recipe: str = "") -> dict[str, Weights]:
    """The tag that was trained here on the train part of ETTh1."""
    source = f"bundled:weights/{model}.etth1"
    return {"etth1": Weights(source, f"time_series/{recipe or model}_etth1", "ETTh1", "data: CC BY-ND 4.0")}


plugin = Plugin(
    api=API,
    doc="forecasters of univariate and multivariate series, with baselines and the field's protocols",
    models=(
        ModelSpec(
            "time_moe_tiny",
            _TIME_MOE,
            "forecasting",
            "Time-MoE at a size that trains on a laptop",
            _PAPER,
            pretrained=_etth1("time_moe_tiny", "time_moe"),
        ),
        ModelSpec(
            "time_moe_base",
            _TIME_MOE,
            "forecasting",
            "113M parameters, 50M active: published as TimeMoE-50M",
            _PAPER,
            pretrained={
                "maple728": Weights(
                    "hf-hub:Maple728/TimeMoE-50M", data=_PUBLIC, licence="Apache-2.0", importer="public"
                )
            },
            importers={"public": TIME_MOE},
        ),
        ModelSpec(
            "time_moe_large",
            _TIME_MOE,
            "forecasting",
            "453M parameters, 198M active: published as TimeMoE-200M",
            _PAPER,
            pretrained={
                "maple728": Weights(
                    "hf-hub:Maple728/TimeMoE-200M", data=_PUBLIC, licence="Apache-2.0", importer="public"
                )
            },
            importers={"public": TIME_MOE},
        ),
        ModelSpec(
            "time_moe_ultra",
            _TIME_MOE,
            "forecasting",
            "2.4B parameters, 1.1B active: described in the paper, weights not released",
            _PAPER,
        ),
        ModelSpec(
            "moirai_moe_tiny",
            _MOIRAI,
            "forecasting",
            "Moirai-MoE at a size that trains on a laptop",
            _MOIRAI_PAPER,
            pretrained=_etth1("moirai_moe_tiny", "moirai_moe"),
        ),
        ModelSpec(
            "moirai_moe_small",
            _MOIRAI,
            "forecasting",
            "117M parameters, 11M active: published as moirai-moe-1.0-R-small",
            _MOIRAI_PAPER,
            pretrained={
                "salesforce": Weights(
                    "hf-hub:Salesforce/moirai-moe-1.0-R-small", data=_LOTSA, licence="CC-BY-NC-4.0", importer="public"
                )
            },
            importers={"public": MOIRAI_MOE},
        ),
        ModelSpec(
            "moirai_moe_base",
            _MOIRAI,
            "forecasting",
            "935M parameters, 86M active: published as moirai-moe-1.0-R-base",
            _MOIRAI_PAPER,
            pretrained={
                "salesforce": Weights(
                    "hf-hub:Salesforce/moirai-moe-1.0-R-base", data=_LOTSA, licence="CC-BY-NC-4.0", importer="public"
                )
            },
            importers={"public": MOIRAI_MOE},
        ),
        ModelSpec("naive", "zoo_time_series.models.baselines:Naive", "forecasting", "repeats the last value"),
        ModelSpec(
            "seasonal_naive", "zoo_time_series.models.baselines:SeasonalNaive", "forecasting", "repeats the last season"
        ),
        ModelSpec(
            "ridge",
            "zoo_time_series.models.baselines:Ridge",
            "forecasting",
            "closed-form linear map, strength by validation",
        ),
        ModelSpec(
            "linear_moe",
            "zoo_time_series.models.linear_moe:LinearMoE",
            "forecasting",
            "linear experts of several lookbacks in closed form, mixed by the kind of window",
            pretrained=_etth1("linear_moe"),
        ),
        ModelSpec(
            "dlinear",
            "zoo_time_series.models.dlinear:DLinear",
            "forecasting",
            "trend and remainder, a linear map each",
            "arXiv:2205.13504",
        ),
        ModelSpec("patch_tst", _PATCH, "forecasting", "dense encoder over patches: the baseline", "arXiv:2211.14730"),
        ModelSpec(
            "seg_moe",
            _PATCH,
            "forecasting",
            "segments of patches are routed, of another length in each layer",
            "Seg-MoE, arXiv:2601.21641",
            pretrained=_etth1("seg_moe"),
        ),
        ModelSpec(
            "mohets",
            _PATCH,
            "forecasting",
            "Fourier experts beside a shared convolution, covariates by cross-attention",
            "MoHETS",
            pretrained=_etth1("mohets"),
        ),
        ModelSpec(
            "time_mixer",
            "zoo_time_series.models.time_mixer:TimeMixer",
            "forecasting",
            "MLPs that mix several scales: the baseline",
            "arXiv:2405.14616",
        ),
        ModelSpec(
            "mole",
            "zoo_time_series.models.mole:MoLE",
            "forecasting",
            "linear maps weighed by a router that sees the window",
            "MoLE, arXiv:2312.06786",
            pretrained={
                "m4_hourly": Weights(
                    "bundled:weights/mole.m4_hourly",
                    "time_series/mole_m4_hourly",
                    "M4 Hourly",
                    "data: CC BY 4.0, as the Monash repository states for its copy",
                )
            },
        ),
    ),
    datasets=(
        DatasetSpec(
            "statsmodels",
            "zoo_time_series.data.statsmodels:Statsmodels",
            "weekly CO2, monthly El Nino or yearly sunspots; ships with statsmodels",
            "public domain, as statsmodels states",
            requires=("pandas", "statsmodels"),
        ),
        DatasetSpec(
            "ett",
            "zoo_time_series.data.ett:Ett",
            "electricity transformer temperature, 7 variates",
            "CC BY-ND 4.0",
            files=tuple(ETT.values()),
            requires=("pandas",),
        ),
        DatasetSpec(
            "long_horizon",
            "zoo_time_series.data.long_horizon:LongHorizon",
            "electricity (ECL), traffic, exchange rates and weather, of the long-horizon benchmark",
            "none stated by the sources; of weather CC BY 4.0, as its host states",
            files=tuple(LONG_HORIZON.values()),
            requires=("pandas",),
        ),
        DatasetSpec(
            "m4",
            "zoo_time_series.data.m4:M4",
            "the M4 competition: thousands of series of different length, with its sMAPE, MASE and OWA",
            "CC BY 4.0, as the Monash repository states for its copy",
            files=tuple(file for pair in M4_FILES.values() for file in pair),
            requires=("pandas",),
        ),
        DatasetSpec(
            "csv", "zoo_time_series.data.csv:Csv", "your own table, wide or long, CSV or parquet", requires=("pandas",)
        ),
    ),
    parts=(
        PartSpec(
            "forecast_head", "flatten", f"{_HEADS}:Flatten", "W vec(h_1 ... h_N) + b", "arXiv:2211.14730", "PatchTST"
        ),
        PartSpec("forecast_head", "conv_patch", f"{_HEADS}:ConvPatch", "deconv(h_m + conv(h)_m)", "", "MoHETS"),
    ),
    tasks=(
        TaskSpec(
            "forecasting",
            "zoo_time_series.tasks.forecasting:Forecasting",
            "forecasts of any horizon, with quantiles",
            inputs=(
                Input("input", "CSV or parquet file, wide or long (in Python also a data frame)", required=True),
                Input("horizon", "points to forecast; by default the horizon it was trained for"),
                Input("quantiles", "levels beside the point forecast, such as 0.1,0.5,0.9"),
                Input("paths", "sample paths to draw, of models of a distribution"),
                Input("windows", "forecast from this many earlier origins instead, and score what is said there"),
                Input("step", "points between two such origins; by default the horizon"),
                Input("time", "name of the time column; found when not given", text=True),
                Input("columns", "columns to forecast, comma-separated; by default all numeric ones", text=True),
            ),
            follows=("context", "horizon"),
            requires=("pandas",),
        ),
    ),
)
