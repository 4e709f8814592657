"use strict";
// Draws what the islands hold. Data enters the page through textContent and plotly's escaped text alone.
(() => {
  const panels = JSON.parse(document.getElementById("panels").textContent);
  const widgets = JSON.parse(document.getElementById("widgets").textContent);
  const root = document.documentElement;
  const byId = (id) => document.getElementById(id);

  // --- theme ---------------------------------------------------------------------------------------------------
  const remembered = () => { try { return localStorage.getItem("limbeck-theme"); } catch { return null; } };
  const remember = (theme) => { try { localStorage.setItem("limbeck-theme", theme); } catch { /* private window */ } };
  const system = matchMedia("(prefers-color-scheme: dark)");
  const wanted = () => remembered() || (system.matches ? "dark" : "light");
  const setTheme = (theme) => {
    root.dataset.theme = theme;
    byId("theme").textContent = theme === "dark" ? "Light" : "Dark";
    drawn.forEach((plot) => draw(plot));
  };

  // --- plots: color names become the theme's colors, everything else is as it was written -----------------------
  const drawn = new Set();
  let focus = ""; // the arm to which the page is narrowed
  const variable = (name) => getComputedStyle(root).getPropertyValue(`--${name}`).trim();
  const diverging = () => {
    const dark = root.dataset.theme === "dark";
    const middle = dark ? "#22272c" : "#f3f2ee";
    return [[0, dark ? "#e08a4a" : "#b4540f"], [0.5, middle], [1, dark ? "#3f93c8" : "#3b8fc0"]];
  };
  const paint = (value, key) => {
    if (typeof value === "string" && value[0] === "@" && /color/i.test(key)) {
      return value === "@diverging" ? diverging() : variable(value.slice(1));
    }
    if (Array.isArray(value)) return value.map((item) => paint(item, key));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, paint(item, name)]));
    }
    return value;
  };
  const axisStyle = (axis) => ({
    gridcolor: variable("rule"), linecolor: variable("rule"), tickcolor: variable("rule"), automargin: true,
    fixedrange: true, ...axis, ...(axis && axis.title ? { title: { ...axis.title, standoff: 8 } } : {}),
  });
  const draw = (plot) => {
    const panel = panels[Number(plot.dataset.panel)];
    const small = plot.classList.contains("small");
    const layout = paint(panel.layout, "");
    const data = paint(panel.data, "").map((trace) => (focus && trace.meta && trace.meta !== focus ? { ...trace, visible: false } : trace));
    if (plot.clientWidth < 480) data.forEach((trace) => { if (trace.type === "heatmap") trace.showscale = false; });
    Plotly.react(plot, data, {
      ...layout,
      xaxis: axisStyle(layout.xaxis),
      yaxis: axisStyle(layout.yaxis),
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: variable("sans"), size: small ? 11 : 12.5, color: variable("ink") },
      hoverlabel: { bgcolor: variable("soft"), bordercolor: variable("rule"), font: { color: variable("ink") } },
      margin: { l: 10, r: 14, t: 8, b: 10, pad: 3 },
      hovermode: "closest",
      dragmode: false,
    }, { displayModeBar: false, responsive: true });
    drawn.add(plot);
  };
  const plots = [...document.querySelectorAll(".plot")];
  const watcher = new IntersectionObserver((entries) => {
    entries.filter((entry) => entry.isIntersecting).forEach((entry) => {
      watcher.unobserve(entry.target);
      if (!drawn.has(entry.target)) draw(entry.target);
    });
  }, { rootMargin: "600px" });

  byId("theme").addEventListener("click", () => {
    const theme = root.dataset.theme === "dark" ? "light" : "dark";
    remember(theme);
    setTheme(theme);
  });
  system.addEventListener("change", () => setTheme(wanted()));
  setTheme(wanted());
  plots.forEach((plot) => watcher.observe(plot));
  addEventListener("beforeprint", () => {
    setTheme("light");
    plots.filter((plot) => !drawn.has(plot)).forEach(draw);
  });
  addEventListener("afterprint", () => setTheme(wanted()));

  // --- tables ----------------------------------------------------------------------------------------------------
  const keyOf = (row, column) => {
    const cell = row.cells[column];
    if ("sort" in cell.dataset) return Number(cell.dataset.sort);
    const text = cell.textContent.trim();
    return text === "–" ? null : text.toLowerCase();
  };
  const compare = (a, b) => {
    if (a === null || b === null) return 0;
    if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
    return a < b ? -1 : a > b ? 1 : 0;
  };
  document.querySelectorAll("table.sortable").forEach((table) => {
    table.querySelectorAll("thead th").forEach((head, column) => {
      head.querySelector("button").addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") !== "descending";
        table.querySelectorAll("thead th").forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const rows = [...table.tBodies[0].rows].map((row) => [keyOf(row, column), row]);
        rows.sort(([a], [b]) => (a === null) - (b === null) || (down ? compare(b, a) : compare(a, b)));
        table.tBodies[0].append(...rows.map(([, row]) => row));
      });
    });
  });

  document.querySelectorAll("table[data-fold]").forEach((table) => {
    const button = document.createElement("button");
    const label = () => { button.textContent = table.classList.contains("fold") ? `Show ${table.dataset.fold} more rows` : "Show fewer"; };
    button.type = "button";
    button.className = "quiet unfold";
    button.addEventListener("click", () => { table.classList.toggle("fold"); label(); });
    table.classList.add("fold");
    label();
    table.parentElement.after(button);
  });

  // --- one arm: rows, panels and traces of others step aside ------------------------------------------------------
  const armsOf = (cell) => JSON.parse(cell.dataset.arms);
  const names = new Map();
  const narrow = (arm) => {
    focus = arm === focus ? "" : arm;
    root.toggleAttribute("data-focus", Boolean(focus));
    document.querySelectorAll("tbody tr").forEach((row) => {
      const named = [...row.querySelectorAll("[data-arms]")].flatMap(armsOf);
      row.hidden = Boolean(focus && named.length && !named.includes(focus));
    });
    plots.forEach((plot) => {
      const { arms } = panels[Number(plot.dataset.panel)];
      plot.closest(".panel").hidden = Boolean(focus && arms.length && !arms.includes(focus));
    });
    drawn.forEach((plot) => { if (!plot.closest(".panel").hidden) draw(plot); });
    document.querySelectorAll("button.arm").forEach((button) => button.setAttribute("aria-pressed", String(button.dataset.arm === focus)));
    byId("focus").hidden = !focus;
    byId("focused").textContent = focus ? names.get(focus) : "";
    if (focus && samples && samples.arms.includes(focus)) {
      byId("arm-a").value = String(samples.arms.indexOf(focus));
      filter();
    }
  };
  document.querySelectorAll("tbody th[data-arms]").forEach((cell) => {
    const [arm, ...others] = armsOf(cell);
    if (others.length) return;
    const text = cell.querySelector("span");
    const button = document.createElement("button");
    button.type = "button";
    button.className = "arm";
    button.dataset.arm = arm;
    button.title = "Narrow the page to this arm";
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => narrow(arm));
    if (!names.has(arm)) names.set(arm, text.textContent);
    text.replaceWith(button);
    button.append(text);
  });
  byId("unfocus").addEventListener("click", () => narrow(focus));

  // --- samples ---------------------------------------------------------------------------------------------------
  const element = (tag, kind, text) => {
    const made = document.createElement(tag);
    if (kind) made.className = kind;
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const samples = widgets.browser;
  const tests = {
    all: () => true, ab: (a, b) => a && !b, ba: (a, b) => !a && b, both: (a, b) => a && b, none: (a, b) => !a && !b,
  };
  let found = [];
  let position = 0;
  const chosen = () => [Number(byId("arm-a").value), Number(byId("arm-b").value)];
  const right = (problem, arm) => Boolean(problem[3][arm] && problem[3][arm][2]);
  const filter = () => {
    const [a, b] = chosen();
    const test = tests[byId("what").value];
    const word = byId("search").value.trim().toLowerCase();
    found = samples.problems.filter((problem) => {
      const [id, prompt, answer, answers] = problem;
      const scored = byId("what").value === "all" || (answers[a] && answers[b]);
      if (!scored || !test(right(problem, a), right(problem, b))) return false;
      return !word || [id, prompt, answer, ...answers.map((one) => (one ? one[0] : ""))].some((text) => text.toLowerCase().includes(word));
    });
    position = 0;
    show();
  };
  const card = (problem, arm) => {
    const [text, extracted, correct, finish] = problem[3][arm];
    const box = element("div", "answer-card");
    const head = element("p", "card-head");
    head.append(element("b", samples.swatches[arm], samples.labels[arm]));
    head.append(element("span", correct ? "is-right" : "is-wrong", correct ? "✓ right" : "✗ wrong"));
    const said = extracted ? `answer read: ${extracted}` : "no answer read";
    box.append(head, element("pre", "text", text), element("p", "gold", finish === "length" ? `${said} · cut by the length limit` : said));
    return box;
  };
  const show = () => {
    const place = byId("problem");
    place.replaceChildren();
    byId("where").textContent = found.length ? `${position + 1} of ${found.length}` : "No problem fits.";
    byId("back").disabled = position === 0;
    byId("next").disabled = position >= found.length - 1;
    if (!found.length) return;
    const problem = found[position];
    const [a, b] = chosen();
    const order = [...new Set([a, b, ...samples.names.keys()])];
    const shown = byId("only").checked ? order.slice(0, a === b ? 1 : 2) : order;
    const cards = element("div", "answers");
    cards.append(...shown.filter((arm) => problem[3][arm]).map((arm) => card(problem, arm)));
    place.append(element("p", "kicker", problem[0]), element("p", "prompt", problem[1]), element("p", "gold", `Gold answer: ${problem[2]}`), cards);
  };
  const step = (by) => { position += by; show(); };
  if (samples) {
    ["arm-a", "arm-b"].forEach((id, which) => {
      samples.labels.forEach((label, index) => {
        const option = element("option", "", label);
        option.value = String(index);
        byId(id).append(option);
      });
      byId(id).value = String(samples.start[which]);
      byId(id).addEventListener("change", filter);
    });
    byId("what").addEventListener("change", filter);
    byId("search").addEventListener("input", filter);
    byId("only").addEventListener("change", show);
    byId("browser").addEventListener("submit", (event) => event.preventDefault());
    byId("back").addEventListener("click", () => step(-1));
    byId("next").addEventListener("click", () => step(1));
    filter();
  }

  // --- matrix of paired tests --------------------------------------------------------------------------------------
  const matrix = widgets.matrix;
  const tell = (row, column) => {
    const [a, b] = [matrix.rows[row].name, matrix.heads[column].name];
    const c = matrix.rows[row].cells[column].counts;
    byId("detail").textContent =
      `${a} against ${b}: ${c.difference} (${c.interval}), ${c.p}, Holm ${c.holm}. Both right ${c.both}, only ${a} right ${c.a}, ` +
      `only ${b} right ${c.b}, both wrong ${c.none}. Alone, this test could have called ${c.smallest}, at Holm's first step ${c.smallestHolm}.`;
  };
  const open = (row, column) => {
    tell(row, column);
    if (!samples) return;
    const [a, b] = [matrix.names[row], matrix.names[column]].map((name) => samples.names.indexOf(name));
    if (a < 0 || b < 0) return;
    byId("arm-a").value = String(a);
    byId("arm-b").value = String(b);
    byId("what").value = "ab";
    byId("search").value = "";
    filter();
    byId("samples").scrollIntoView();
    byId("what").focus({ preventScroll: true });
  };
  if (matrix) {
    byId("matrix").querySelectorAll("button").forEach((button) => {
      const at = [Number(button.dataset.row), Number(button.dataset.col)];
      button.addEventListener("pointerenter", () => tell(...at));
      button.addEventListener("focus", () => tell(...at));
      button.addEventListener("click", () => open(...at));
    });
  }
})();
