"""Speech and music from one mixture of experts: the manifest. Importing it needs no torch."""

from zoo.spec import API, DatasetSpec, Input, ModelSpec, PartSpec, Plugin, TaskSpec, Weights
from zoo_audio.data.files import FSDD, JSB, NOTTINGHAM
from zoo_audio.importers import UNIMOE_AUDIO

_MODEL = "zoo_audio.models.unimoe_audio:UniMoEAudio"
_PAPER = "UniMoE-Audio, arXiv:2510.13344"
_SETS = "zoo_audio.data.sets"
_FSDD = "Free Spoken Digit Dataset"

plugin = Plugin(
    api=API,
    doc="speech and music from one mixture of experts, with a codec and a recogniser",
    models=(
        ModelSpec(
            "unimoe_audio_tiny",
            _MODEL,
            "speaking",
            "UniMoE-Audio at a size that trains on one core",
            _PAPER,
            pretrained={
                "digits_chorales": Weights(
                    "bundled:weights/unimoe_audio_tiny.digits_chorales",
                    "audio/digits_chorales",
                    f"{_FSDD}, JSB Chorales",
                    "CC BY-SA 4.0 (as its speech data)",
                )
            },
        ),
        ModelSpec(
            "unimoe_audio",
            _MODEL,
            "speaking",
            "the published decoder: top-p over 8 routed experts and a null one, 2 shared",
            _PAPER,
            pretrained={
                "preview": Weights(
                    "hf-hub:foggyforest/UniMoE-Audio-preview",
                    data="voice cloning, FMA, MusicNet and more",
                    licence="none stated",
                    importer="preview",
                )
            },
            importers={"preview": UNIMOE_AUDIO},
        ),
        ModelSpec("unimoe_audio_dense", _MODEL, "speaking", "the tiny decoder without experts: the control", _PAPER),
        ModelSpec(
            "codec",
            "zoo_audio.models.codec:Codec",
            "coding",
            "a neural codec: spectra, residual vector quantisation, Griffin-Lim",
            pretrained={
                "digits": Weights("bundled:weights/codec.digits", "audio/codec", _FSDD, "CC BY-SA 4.0 (as its data)")
            },
        ),
        ModelSpec(
            "codec_16khz",
            "zoo_audio.models.codec:Codec",
            "coding",
            "the codec at 16 kHz with twelve codebooks of 1,024, for your own sounds",
        ),
        ModelSpec(
            "recogniser",
            "zoo_audio.models.recogniser:Recogniser",
            "recognition",
            "words and speakers, to judge what is generated",
            pretrained={
                "digits": Weights(
                    "bundled:weights/recogniser.digits", "audio/recogniser", _FSDD, "CC BY-SA 4.0 (as its data)"
                )
            },
        ),
    ),
    datasets=(
        DatasetSpec("synthetic", f"{_SETS}:Synthetic", "vowels and cadences made here, no file needed", "Apache-2.0"),
        DatasetSpec(
            "digits",
            f"{_SETS}:Digits",
            "Free Spoken Digit Dataset: 3,000 recordings, six speakers",
            "CC BY-SA 4.0",
            files=(FSDD,),
            requires=("soundfile",),
        ),
        DatasetSpec(
            "chorales",
            f"{_SETS}:Chorales",
            "JSB Chorales as piano rolls of quarter notes",
            "MIT (as redistributed); the works are in the public domain",
            files=(JSB,),
            requires=("scipy",),
        ),
        DatasetSpec(
            "nottingham",
            f"{_SETS}:Nottingham",
            "Nottingham, folk tunes with chords, as piano rolls",
            "MIT (as redistributed)",
            files=(NOTTINGHAM,),
            requires=("scipy",),
        ),
        DatasetSpec(
            "digits_chorales",
            f"{_SETS}:Mixed",
            "speech and music in one: digits and chorales unless told otherwise",
            "CC BY-SA 4.0, MIT",
            files=(FSDD, JSB),
            requires=("soundfile", "scipy"),
        ),
        DatasetSpec("sounds", f"{_SETS}:SoundFiles", "your own folder of WAV or FLAC files", requires=("soundfile",)),
        DatasetSpec("midi", f"{_SETS}:MidiFiles", "your own folder of MIDI files", requires=("mido",)),
    ),
    tasks=(
        TaskSpec(
            "speaking",
            "zoo_audio.tasks.speaking:Speaking",
            "speech of a text, music from nothing or from a beginning",
            inputs=(
                Input("text", "what to say; without it music is made", text=True),
                Input("speaker", "who says it, one of those in the training data", text=True),
                Input("continue", "a MIDI file (or for speech a sound file) to go on from", text=True),
                Input("seconds", "at most so many are made", default=10.0),
                Input("temperature", "1 draws from the model's distribution, 0 takes the likeliest; else the task's"),
                Input("top_p", "draw from the likeliest codes that hold this share; else the task's"),
                Input("bpm", "beats a minute of music", default=90.0),
                Input("seed", "of the draws", default=0),
            ),
            requires=("soundfile", "mido"),
        ),
        TaskSpec(
            "coding",
            "zoo_audio.tasks.coding:Coding",
            "sound to codes and back",
            inputs=(Input("input", "a sound file", required=True, text=True),),
            requires=("soundfile",),
        ),
        TaskSpec(
            "recognition",
            "zoo_audio.tasks.recognition:Recognition",
            "which word, which speaker, or neither",
            inputs=(Input("input", "a sound file", required=True, text=True),),
            requires=("soundfile",),
        ),
    ),
    parts=(
        PartSpec(
            "weigher",
            "masked_joint",
            "zoo_audio.models.experts:MaskedJoint",
            "w_e = share among the chosen * routed part of a softmax over chosen and shared",
            "arXiv:2510.13344",
            "UniMoE-Audio",
        ),
        PartSpec(
            "init action",
            "merge_specialists",
            "zoo_audio.merging:MergeSpecialists",
            "the FFN halves of every specialist become experts, the rest is averaged",
            "arXiv:2510.13344",
            "UniMoE-Audio",
        ),
        PartSpec(
            "shared",
            "side_by_side",
            "zoo_audio.models.experts:SideBySide",
            "sum_s w_s swiglu_s(x)",
            "arXiv:2510.13344",
            "UniMoE-Audio",
        ),
    ),
)
