"""Style the page for light and dark mode, wide and narrow screens."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

from ... import storage

THEME = gr.themes.Soft(
    primary_hue="teal", neutral_hue="slate", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
).set(  # the theme's own colours are too pale to read well
    body_background_fill="*neutral_50",
    input_border_width="1px",
    input_border_color="*neutral_300",
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_hover="*primary_800",
    block_label_text_color="*primary_800",
    block_title_text_color="*primary_800",
    body_text_color_subdued="*neutral_600",
    block_info_text_color="*neutral_600",
    checkbox_border_color="*neutral_400",
    checkbox_border_color_dark="*neutral_500",
    input_placeholder_color="*neutral_500",
    input_placeholder_color_dark="*neutral_400",
)
HEAD = f"<script>{storage.read_bytes(Path(__file__).with_name('page.js'), 1 << 20).decode()}</script>"
CSS = """
.line, .line label, .line textarea {
    background: none !important; border: none !important; box-shadow: none !important;
}
.line textarea {
    padding: 0 !important; color: var(--body-text-color); -webkit-text-fill-color: currentColor; resize: none;
}
#model-line textarea { color: var(--body-text-color-subdued); }
#status textarea { font-weight: 600; }
.heading { align-items: center; }
#concepts .grid-container { grid-template-columns: repeat(auto-fill, minmax(92px, 1fr)) !important; }
#concepts .grid-wrap { min-height: 0 !important; max-height: 280px !important; }
#concepts .grid-wrap { overflow: hidden auto !important; }
#images .grid-wrap { min-height: 420px !important; max-height: none !important; overflow: hidden !important; }
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
#concepts .caption-label, #history .caption-label {
    font-size: 11px; max-width: calc(100% - 8px); right: 4px; bottom: 4px; padding: 2px 6px;
}
#concepts .caption-label { white-space: normal; overflow-wrap: anywhere; line-height: 1.2; }
#photos .grid-container { grid-template-columns: repeat(auto-fill, minmax(110px, 1fr)) !important; }
#photos .grid-wrap { min-height: 0 !important; max-height: 460px !important; overflow: hidden auto !important; }
#photos .caption-label { font-size: 11px; max-width: calc(100% - 8px); }
#photo, #run-confirm { padding: 12px; border: 1px solid var(--border-color-primary); border-radius: 8px; gap: 10px; }
#photo-name textarea, #run-title textarea { font-weight: 600; }
#run-title textarea { font-size: 1.25em; }
#run-bar progress { width: 100%; height: 10px; border: none; border-radius: 5px; appearance: none; overflow: hidden;
    background: var(--border-color-primary); }
#run-bar progress::-webkit-progress-bar { background: var(--border-color-primary); }
#run-bar progress::-webkit-progress-value { background: var(--primary-600); }
#run-bar progress::-moz-progress-bar { background: var(--primary-600); }
#run-bar progress:indeterminate::-webkit-progress-bar {
    background: var(--primary-600); animation: run-wait 1.6s infinite;
}
#run-bar progress:indeterminate::-moz-progress-bar { animation: run-wait 1.6s infinite; }
@keyframes run-wait { 50% { opacity: 0.3; } }
@media (prefers-reduced-motion: reduce) { #run-bar progress { animation: none !important; } }
#run-loss svg { width: 100%; max-width: 640px; color: var(--body-text-color); }
#run-loss .floor { stroke: currentColor; opacity: 0.3; }
#run-loss .dots { stroke: currentColor; opacity: 0.35; stroke-width: 3; stroke-linecap: round; fill: none; }
#run-loss .line { stroke: var(--primary-500); stroke-width: 2.5; stroke-linejoin: round; fill: none; }
#run-loss text { fill: currentColor; font-size: 12px; }
#run-samples .grid-wrap { min-height: 0 !important; max-height: none !important; overflow: hidden !important; }
#run-bar, #run-bar *, #run-loss, #run-loss * { padding: 0 !important; }
#run-samples .grid-container { grid-template-columns: repeat(auto-fit, minmax(240px, 1fr)) !important; }
#run-samples .caption-label { font-size: 11px; max-width: calc(100% - 8px); }
#run-done .try { justify-content: flex-start; text-align: left; white-space: normal; }

/* the library */
#tiles .grid-container { grid-template-columns: repeat(auto-fill, minmax(104px, 1fr)) !important; }
#tiles .grid-wrap { min-height: 0 !important; max-height: 62vh !important; overflow: hidden auto !important; }
#tiles .caption-label { font-size: 11px; max-width: calc(100% - 8px); right: 4px; bottom: 4px; padding: 2px 6px; }
#card header { display: flex; gap: 16px; flex-wrap: wrap; align-items: flex-start; }
#card header > div { flex: 1 1 220px; min-width: 0; overflow-wrap: anywhere; }
#card img { width: 192px; max-width: 45%; border-radius: 8px; }
#card h3 { margin: 4px 0; }
#card .quality { color: var(--body-text-color-subdued); }
#card code { font-size: 105%; overflow-wrap: anywhere; }
#card dl, .facts dl {
    display: grid; grid-template-columns: minmax(96px, max-content) 1fr; gap: 4px 16px; margin: 12px 0 0;
}
#card dt, .facts dt { color: var(--body-text-color-subdued); }
#card dd, .facts dd { margin: 0; min-width: 0; overflow-wrap: anywhere; }
#card .none { color: var(--body-text-color-subdued); padding: 24px 0; }
.table { overflow-x: auto; }
.table table { width: 100%; border-collapse: collapse; }
.table th, .table td {
    text-align: left; vertical-align: top; padding: 4px 8px; overflow-wrap: anywhere;
    border-bottom: 1px solid var(--border-color-primary);
}
.table thead th { white-space: nowrap; }
.table th { font-weight: normal; color: var(--body-text-color-subdued); }
.table img { display: block; width: 128px; max-width: 100%; border-radius: 6px; margin-bottom: 4px; }
.table td:first-child, .table tbody th { min-width: 84px; }
.table table, .table thead, .table tbody, .table tr { border: none !important; background: none !important; }
.table th, .table td { border-width: 0 0 1px !important; }
.table td.good, .table td.bad, .table td.maybe { white-space: nowrap; }
.aligned-field { align-self: center; }
.confirm { padding: 12px; border: 1px solid var(--border-color-primary); border-radius: 8px; }
@media (max-width: 600px) {
    #import-results td { display: block; border: none !important; padding: 2px 8px; }
    #import-results tr {
        display: block; border-bottom: 1px solid var(--border-color-primary) !important; padding: 6px 0;
    }
}
.table .differs td { font-weight: 600; }
.table .good { color: var(--primary-700); }
.dark .table .good { color: var(--primary-300); }
.table .bad { color: var(--error-text-color); }
#export-steps ul, #export-steps ol { margin: 4px 0 8px 20px; }
#export-steps li, #export-steps p { overflow-wrap: anywhere; }
#export-steps .note { color: var(--body-text-color-subdued); }
"""
