"use strict";
(() => {
  const root = document.documentElement;
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const config = {
    displaylogo: false,
    responsive: true,
    showSendToCloud: false,
    modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d", "zoomIn2d", "zoomOut2d"],
  };
  const pointing = matchMedia("(hover: hover)");
  const phone = matchMedia("(max-width: 40rem)");

  // Colours are named as the style sheet names them, and so follow the reader's scheme.
  function coloured(value, isColour, style) {
    if (typeof value === "string") {
      const name = isColour ? /^var\((--[a-z0-9-]+)\)$/.exec(value) : null;
      return name ? style.getPropertyValue(name[1]).trim() : value;
    }
    if (Array.isArray(value)) return value.map((each) => coloured(each, isColour, style));
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(
      Object.entries(value).map(([key, each]) => [key, coloured(each, isColour || /color/.test(key), style)]),
    );
  }

  function laidOut(layout) {
    const axis = {
      automargin: true,
      minexponent: 5,
      color: "var(--soft)",
      gridcolor: "var(--grid)",
      linecolor: "var(--line)",
      zerolinecolor: "var(--line)",
      tickfont: { size: 12 },
    };
    const made = {
      paper_bgcolor: "var(--page)",
      plot_bgcolor: "var(--page)",
      font: { color: "var(--text)", family: getComputedStyle(document.body).fontFamily, size: 13 },
      margin: { l: 8, r: phone.matches ? 8 : 16, t: 8, b: 8 },
      legend: { orientation: "h", x: 0, xanchor: "left", y: 1.02, yanchor: "bottom", font: { size: 12 } },
      hoverlabel: { bgcolor: "var(--panel)", bordercolor: "var(--line)", font: { color: "var(--text)", size: 12 }, align: "left" },
      modebar: { bgcolor: "var(--page)", color: "var(--soft)", activecolor: "var(--link)" },
      hovermode: "closest",
      dragmode: phone.matches ? false : "zoom",
      ...layout,
    };
    for (const key of ["xaxis", "yaxis", "xaxis2", "yaxis2"]) {
      if (!(key in made) && key.endsWith("2")) continue;
      const own = made[key] || {};
      const title = own.title ? { standoff: 8, font: { size: 12, color: "var(--soft)" }, ...own.title } : undefined;
      made[key] = { ...axis, ...own, title };
    }
    return made;
  }

  function draw(chart) {
    const style = getComputedStyle(root);
    const view = chart.views[chart.shown || 0];
    const traces = coloured(view.traces, false, style);
    const layout = coloured({ ...laidOut(view.layout), height: chart.height }, false, style);
    return Plotly.react(chart.id, traces, layout, { ...config, displayModeBar: pointing.matches ? "hover" : false });
  }

  function drawAll() {
    return Promise.all(charts.map(draw));
  }

  for (const chart of charts) {
    for (const input of document.getElementsByName(`${chart.id}-view`)) {
      input.addEventListener("change", () => {
        chart.shown = Number(input.value);
        draw(chart);
      });
    }
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  phone.addEventListener("change", drawAll);
  // On paper it is always light.
  addEventListener("beforeprint", () => { root.classList.add("printing"); drawAll(); });
  addEventListener("afterprint", () => { root.classList.remove("printing"); drawAll(); });

  function sortedBy(cell, numeric) {
    if (!numeric) return cell.textContent;
    return cell.dataset.value === undefined ? null : Number(cell.dataset.value);
  }

  function sort(table, column, head) {
    const descending = head.getAttribute("aria-sort") === "ascending";
    const numeric = head.classList.contains("number");
    const rows = [...table.tBodies[0].rows].map((row) => [sortedBy(row.cells[column], numeric), row]);
    rows.sort(([one], [other]) => {
      // What has no number comes last, whichever way.
      if (one === null || other === null) return (one === null) - (other === null);
      const order = numeric ? one - other : one.localeCompare(other, undefined, { numeric: true });
      return descending ? -order : order;
    });
    for (const each of table.tHead.rows[0].cells) each.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    table.tBodies[0].append(...rows.map(([, row]) => row));
  }

  for (const table of document.querySelectorAll("table")) {
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      head.querySelector("button").addEventListener("click", () => sort(table, column, head));
    });
  }

  drawAll().then(() => { root.dataset.drawn = charts.length; });
})();
