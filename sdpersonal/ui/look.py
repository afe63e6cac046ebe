"""How the page looks, light and dark, wide and narrow."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

from .. import files

THEME = gr.themes.Soft(
    primary_hue="teal", neutral_hue="slate", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
).set(  # the theme's own are too pale to read well
    body_background_fill="*neutral_50",
    input_border_width="1px",
    input_border_color="*neutral_300",
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_hover="*primary_800",
    block_label_text_color="*primary_800",
    block_title_text_color="*primary_800",
    body_text_color_subdued="*neutral_600",
    block_info_text_color="*neutral_600",
)
HEAD = f"<script>{files.read_bytes(Path(__file__).with_name('page.js'), 1 << 20).decode()}</script>"
CSS = """
.line, .line label, .line textarea {
    background: none !important; border: none !important; box-shadow: none !important;
}
.line textarea {
    padding: 0 !important; color: var(--body-text-color); -webkit-text-fill-color: currentColor; resize: none;
}
#base textarea { color: var(--body-text-color-subdued); }
#status textarea { font-weight: 600; }
.heading { align-items: center; }
#concepts .grid-container { grid-template-columns: repeat(auto-fill, minmax(92px, 1fr)) !important; }
#concepts .grid-wrap { min-height: 0 !important; max-height: 280px !important; }
#concepts .grid-wrap { overflow: hidden auto !important; }
#pictures .grid-wrap { min-height: 420px !important; max-height: none !important; overflow: hidden !important; }
#history .grid-container { grid-template-columns: repeat(auto-fill, minmax(110px, 1fr)) !important; }
#history .grid-wrap { max-height: 70vh !important; overflow: hidden auto !important; }
button[role="tab"].selected { color: var(--primary-700); }
.dark button[role="tab"].selected { color: var(--primary-300); }
#prompt-note textarea { color: var(--error-text-color); }
.bar { width: 100%; height: 8px; border-radius: 4px; background: var(--border-color-primary); overflow: hidden; }
.bar div { height: 100%; background: var(--button-primary-background-fill); transition: width 0.3s; }
#live .so-far { display: flex; gap: 8px; flex-wrap: wrap; margin-top: 8px; }
#live img { width: 128px; height: 128px; object-fit: contain; border-radius: 6px; }
#completion {
    position: absolute; z-index: 1000; margin: 2px 0 0; padding: 4px; list-style: none; border-radius: 6px;
    background: var(--background-fill-primary); border: 1px solid var(--border-color-primary);
    box-shadow: 0 4px 16px rgb(0 0 0 / 20%); color: var(--body-text-color); font-family: var(--font-mono);
}
#completion[hidden] { display: none; }
#completion li { padding: 4px 10px; border-radius: 4px; cursor: pointer; }
#completion li[aria-selected="true"] { background: var(--button-primary-background-fill); color: white; }
#concepts .caption-label { font-size: 11px; max-width: calc(100% - 8px); right: 4px; bottom: 4px; padding: 2px 6px; }
#make-tiles .grid-container { grid-template-columns: repeat(auto-fill, minmax(110px, 1fr)) !important; }
#make-tiles .grid-wrap { min-height: 0 !important; max-height: 460px !important; overflow: hidden auto !important; }
#make-tiles .caption-label { font-size: 11px; max-width: calc(100% - 8px); }
#make-photo { padding: 10px; }
#make-photo-name textarea, #run-title textarea { font-weight: 600; }
#run-title textarea { font-size: 1.25em; }
#run-bar progress { width: 100%; height: 14px; accent-color: var(--button-primary-background-fill); }
#run-curve svg { width: 100%; max-width: 900px; color: var(--body-text-color); }
#run-curve .floor { stroke: currentColor; opacity: 0.3; }
#run-curve .dots { stroke: currentColor; opacity: 0.35; stroke-width: 3; stroke-linecap: round; fill: none; }
#run-curve .line { stroke: var(--primary-500); stroke-width: 2.5; stroke-linejoin: round; fill: none; }
#run-curve text { fill: currentColor; font-size: 12px; }
#run-pictures .grid-wrap { min-height: 0 !important; max-height: none !important; }
#run-done .try { justify-content: flex-start; text-align: left; white-space: normal; }
"""
