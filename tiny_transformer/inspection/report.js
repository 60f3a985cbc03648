// Draws the charts of the run report in the colours of the page, and again whenever those change.
"use strict";
(() => {
  const root = document.documentElement;
  const colour = (name) => getComputedStyle(root).getPropertyValue("--" + name).trim();
  const touch = matchMedia("(pointer: coarse)").matches;
  const config = { responsive: true, displayModeBar: false, showTips: false };
  const widths = { "train-raw": 1, train: 2.2, val: 2, floor: 1.6 };

  const charts = [...document.querySelectorAll(".chart")].map((place) => ({
    place,
    figure: JSON.parse(place.nextElementSibling.textContent),
    wide: place.parentElement.classList.contains("wide"),
    log: false,
    close: false,
  }));

  function traces(chart) {
    return chart.figure.data.map((trace) => {
      const role = trace.meta.role;
      return { ...trace, line: { color: colour(role), width: widths[role] }, marker: { color: colour(role), size: 6 } };
    });
  }

  function stepRange(chart) {
    if (!chart.close) return { autorange: true };
    const range = chart.figure.meta.close_up.x;
    return { range: chart.log ? range.map(Math.log10) : range };
  }

  function span(chart) {
    const steps = chart.figure.data.flatMap((trace) => [trace.x[0], trace.x[trace.x.length - 1]]);
    return Math.max(...steps) - Math.min(...steps);
  }

  function layout(chart) {
    const family = getComputedStyle(document.body).fontFamily;
    const given = chart.figure.layout;
    const axis = {
      gridcolor: colour("grid"), linecolor: colour("line"), zerolinecolor: colour("grid"), color: colour("soft"), automargin: true,
      spikecolor: colour("soft"), spikethickness: 1,
    };
    return {
      paper_bgcolor: colour("paper"), plot_bgcolor: colour("paper"),
      font: { family, size: 12.5, color: colour("ink") },
      margin: { l: 8, r: 8, t: chart.wide ? 34 : 8, b: 8 },
      hovermode: "x unified", dragmode: touch ? false : "zoom", // a finger scrolls the page
      hoverlabel: { bgcolor: colour("card"), bordercolor: colour("line"), font: { family, color: colour("ink") } },
      showlegend: chart.wide,
      legend: { orientation: "h", x: 0, xanchor: "left", y: 1.02, yanchor: "bottom", font: { color: colour("soft") } },
      xaxis: {
        ...axis, ...stepRange(chart), type: chart.log ? "log" : "linear", tickformat: ",d", hoverformat: ",d", unifiedhovertitle: { text: "step %{x:,d}" },
        dtick: chart.log && !chart.close ? "D2" : span(chart) < 10 ? 1 : undefined, nticks: chart.place.clientWidth > 600 ? 12 : 5,
        title: { text: chart.wide ? "step" : undefined, standoff: 6 },
      },
      yaxis: {
        ...axis, ...given.yaxis, nticks: chart.wide ? 8 : 5,
        ...(chart.close ? { range: chart.figure.meta.close_up.y } : { autorange: true }),
      },
      shapes: (given.shapes || []).map((line) => ({ ...line, line: { color: colour("floor"), width: widths.floor, dash: "dash" } })),
      annotations: (given.annotations || []).map((label) => ({ ...label, font: { color: colour("floor") } })),
    };
  }

  const draw = (chart) => Plotly.react(chart.place, traces(chart), layout(chart), config);
  const drawAll = () => charts.forEach(draw);

  charts.forEach((chart) => {
    chart.place.parentElement.querySelectorAll("button").forEach((button) => {
      button.setAttribute("aria-pressed", "false");
      button.addEventListener("click", () => {
        const which = button.dataset.toggle;
        chart[which] = !chart[which];
        button.setAttribute("aria-pressed", String(chart[which]));
        draw(chart);
      });
    });
  });

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  addEventListener("beforeprint", () => { root.classList.add("printing"); drawAll(); });
  addEventListener("afterprint", () => { root.classList.remove("printing"); drawAll(); });
  drawAll();
})();
