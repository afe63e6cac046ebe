"""How the page looks, light and dark, wide and narrow."""

from __future__ import annotations

import gradio as gr

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
HEAD = ""
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
#concepts .caption-label { font-size: 11px; max-width: calc(100% - 8px); right: 4px; bottom: 4px; padding: 2px 6px; }
"""
