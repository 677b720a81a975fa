"""Peaks, precisions and units of the hardware table."""

import pytest

from kinetics_lab.book.results import Badge
from kinetics_lab.cost.hardware import ELEMENT_BYTES, HARDWARE, find_hardware


def test_the_papers_b200_and_a_consistent_one():
    paper = find_hardware("b200-paper")
    assert (paper.intensity, paper.peak_flops, paper.bytes_per_element) == (562.5, 4500e12, 2)
    assert find_hardware("b200").intensity == 281.25  # dense BF16 at 2 bytes
    fp8 = find_hardware("b200", "fp8")
    assert (fp8.intensity, fp8.bytes_per_element) == (562.5, 1)


@pytest.mark.parametrize("name", HARDWARE)
def test_figures_are_in_si_units_and_have_a_source(name):
    hw = HARDWARE[name]
    assert hw.precision in hw.peaks
    assert 5e13 < hw.peak_flops < 1e16
    assert 2e11 < hw.bandwidth < 1e13
    assert 3e10 <= hw.link < 1e12
    assert 1e10 < hw.memory < 1e12
    assert len(hw.source) > 10
    assert hw.title == hw.called != name  # as people call it
    assert set(hw.peaks) <= set(ELEMENT_BYTES)
    if "fp8" in hw.peaks:  # dense beside dense
        assert hw.peaks["fp8"] == pytest.approx(2 * hw.peaks["bf16"], rel=0.02)


def test_several_devices_scale_everything_but_intensity():
    one, eight = find_hardware("h200"), find_hardware("h200", n_devices=8)
    assert (eight.peak_flops, eight.bandwidth, eight.memory) == (
        8 * one.peak_flops,
        8 * one.bandwidth,
        8 * one.memory,
    )
    assert eight.intensity == one.intensity
    assert (eight.n_devices, eight.name, eight.title) == (8, "8 x h200", "8 × H200 SXM")
    assert eight.at("fp8").peak_flops == 8 * one.at("fp8").peak_flops


def test_with_intensity_keeps_the_peak():
    hw = find_hardware("b200-paper").with_intensity(100)
    assert (hw.intensity, hw.peak_flops) == (pytest.approx(100), 4500e12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: find_hardware("h20"), "hardware 'h20' is not known; did you mean h200"),
        (lambda: find_hardware("a100", "fp8"), "a100: precision 'fp8' is not known"),
        (
            lambda: find_hardware("h100", n_devices=0),
            "n_devices must be at least 1, at most a million; got 0",
        ),
        (lambda: find_hardware("h100").with_intensity(-1), "intensity must be positive .*; got -1"),
    ],
)
def test_bad_requests_say_what_would_be_right(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_badge_says_device_precision_and_clock():
    labels = [find_hardware("h200").label, find_hardware("b200-paper", n_devices=8).label, "a <b> c"]
    shown = Badge(*labels)._repr_html_()
    assert "<span>H200 SXM · BF16 · datasheet (ideal rates)</span>" in shown
    assert "<span>8 × B200 as published · FP8 rate, BF16 bytes · datasheet (ideal rates)</span>" in shown
    assert "a &lt;b&gt; c" in shown
    with pytest.raises(ValueError, match="a badge needs texts"):
        Badge()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('["<b>gpu</b>"]\n{}', "the name of a device must be words .* got '<b>gpu</b>'"),
        ('[my-gpu]\nname = "**x**"\n{}', r"\[my-gpu\] name must be words .* got '\*\*x\*\*'"),
        ("[my-gpu]\nname = 5\n{}", r"\[my-gpu\] name must be words .* got 5"),
    ],
)
def test_a_device_of_ones_own_has_a_plain_label(text, message, tmp_path):
    (tmp_path / "a.toml").write_text(
        text.format('peaks = {bf16 = 9}\nbandwidth = 1\ngib = 8\nsource = "s"\n')
    )
    with pytest.raises(ValueError, match=message):
        find_hardware(tmp_path / "a.toml")
