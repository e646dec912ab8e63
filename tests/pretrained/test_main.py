"""The command line: what it prints and writes, and one line for a mistake."""

import numpy as np
import pytest

from copymit.pretrained.__main__ import main
from copymit.pretrained.load import load_network
from copymit.pretrained.source import open_source
from tests.pretrained.miniatures import abstract_of, change_json, make_pipeline


def test_inspect_describes_a_model(copy, capsys):
    (copy / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    main(["inspect", str(copy)])
    printed = capsys.readouterr().out
    unet = sum(p.numel() for p in make_pipeline("1-4").unet.parameters()) / 1e6
    lines = {line.split("  ")[0]: line for line in printed.splitlines()}
    assert f"UNet2DConditionModel  {unet:>8.1f} M   unet/diffusion" in lines["unet"]
    assert lines["vae"].endswith("no weights")
    assert lines["prediction type"].endswith("epsilon")
    assert lines["native size"].endswith("16 x 16 pixels")
    assert lines["licence"].endswith("see its model card")


def test_download_copies_what_is_needed(copy, tmp_path):
    (copy / "unet" / "diffusion_pytorch_model.non_ema.safetensors").touch()
    (copy / "v1-5-pruned.ckpt").touch()
    main(["download", str(copy), f"--to={tmp_path / 'to'}"])
    written = [p for p in (tmp_path / "to").rglob("*") if p.is_file()]
    assert len(written) == 10
    for path in written:
        original = copy / path.relative_to(tmp_path / "to")
        assert path.read_bytes() == original.read_bytes()
    main(["inspect", str(tmp_path / "to")])


def test_convert_makes_a_model_of_today_from_old_files(copy, tmp_path):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    for path in copy.rglob("*.safetensors"):
        path.unlink()
    pipeline = make_pipeline("1-4")
    for network, stem in (
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "pytorch_model"),
    ):
        state = getattr(pipeline, network).state_dict()
        torch.save(state, copy / network / f"{stem}.bin")
    main(["convert", str(copy), f"--to={tmp_path / 'to'}", "--dtype=float16"])
    assert not list((tmp_path / "to").rglob("*.bin"))
    again = diffusers.StableDiffusionPipeline.from_pretrained(
        tmp_path / "to", safety_checker=None, torch_dtype=torch.float16
    )
    for name, value in pipeline.unet.state_dict().items():
        assert torch.equal(again.unet.state_dict()[name], value.half()), name
    source = open_source(str(tmp_path / "to"))
    loaded = load_network(source, "vae", abstract_of(source, "vae"))
    expected = pipeline.vae.decoder.conv_in.bias.detach().half().numpy()
    np.testing.assert_array_equal(loaded["decoder.conv_in.bias"], expected)


def test_bad_input_is_one_line(copy):
    change_json(copy / "model_index.json", _class_name="FluxPipeline")
    with pytest.raises(SystemExit) as failure:
        main(["inspect", str(copy)])
    message = str(failure.value)
    assert message.startswith(f"error: {copy} is a FluxPipeline")
    assert message.count("\n") == 1
    with pytest.raises(ValueError, match="FluxPipeline"):
        main(["inspect", str(copy), "--debug"])
