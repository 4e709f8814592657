"use strict";
(() => {
  const EVERY = 2000, WHEN_DONE = 15000; // milliseconds between two questions
  const ORDER = ["running", "failed", "stopped", "waiting", "done"];
  const at = (id) => document.getElementById(id);

  // Text enters the page here and nowhere else, as text.
  const fill = (node, attributes, children) => {
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  };
  const el = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
  const svg = (tag, attributes = {}, ...children) => fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

  const short = (x) => Math.abs(x) >= 1000 ? Math.round(x).toLocaleString("en") : String(Number(x.toPrecision(3)));
  const duration = (seconds) => {
    const minutes = Math.round(seconds / 60), two = (n) => String(n).padStart(2, "0");
    if (seconds < 100) return `${Math.round(seconds)} s`;
    if (minutes < 100) return `${minutes} min`;
    if (minutes < 2880) return `${Math.floor(minutes / 60)} h ${two(minutes % 60)} min`;
    return `${Math.floor(minutes / 1440)} d ${Math.floor(minutes % 1440 / 60)} h`;
  };

  const status = (s) => {
    if (s.status === "complete") return "Complete";
    const written = `last written ${duration(s.seconds_silent)} ago`;
    if (s.status === "stopped") return `Not running; ${written}`;
    const left = s.seconds_left === null ? "" : `, about ${duration(s.seconds_left)} left`;
    return `Running${left}; process ${s.writer}; ${written}`;
  };

  const counts = (s) => {
    const share = s.share === null ? "" : `${Math.round(100 * s.share)} %, `;
    if (s.kind === "run") return `${share}step ${s.runs[0].step} of ${s.runs[0].steps}`;
    const said = ["done", "running", "waiting", "stopped", "failed"].filter((name) => s.counts[name]).map((name) => `${s.counts[name]} ${name}`);
    return `${share}${s.steps.length} steps: ${said.join(", ") || "none"}`;
  };

  const kinds = (steps) => {
    const found = new Map();
    for (const step of steps) {
      const kind = step.name.split("/")[0], [done, num] = found.get(kind) ?? [0, 0];
      found.set(kind, [done + (step.status === "done"), num + 1]);
    }
    return [...found].map(([kind, [done, num]]) => el("li", {}, `${kind} ${done}/${num}`));
  };

  const notes = (s) => {
    const said = s.notes.map((note) => el("p", {}, `${note[0].toUpperCase()}${note.slice(1)}.`));
    if (s.status === "stopped") said.push(el("p", {}, "Go on with", el("code", {}, s.go_on)));
    if (s.report) said.push(el("p", {}, el("a", { href: "report.html", target: "_blank", rel: "noopener" }, "Open the report")));
    return said;
  };

  const curve = (name, points, steps) => {
    const values = points.map((point) => point[1]), low = Math.min(...values), high = Math.max(...values);
    const x = (step) => (100 * (step - 1) / Math.max(steps - 1, 1)).toFixed(2);
    const y = (value) => (high === low ? 20 : 38 - 36 * (value - low) / (high - low)).toFixed(2);
    const [first, ...rest] = points.map(([step, value]) => `${x(step)} ${y(value)}`);
    const said = `${name} over ${points.length} steps, from ${short(low)} to ${short(high)}, now ${short(values.at(-1))}`;
    const drawing = svg("svg", { viewBox: "0 0 100 40", preserveAspectRatio: "none", role: "img", "aria-label": said },
      svg("title", {}, said),
      svg("line", { x1: 0, x2: 100, y1: 40, y2: 40 }),
      svg("path", { d: `M${first}${rest.map((place) => `L${place}`).join("")}` }));
    const range = el("div", { class: "range" }, el("span", {}, short(high)), el("span", {}, short(low)));
    return el("div", { class: `curve ${name}` }, el("div", {}, name, el("b", {}, short(values.at(-1)))), drawing, range);
  };

  const thin = (share) => {
    const inner = el("div");
    inner.style.width = `${100 * share}%`;
    return el("div", { class: "bar thin" }, inner);
  };

  const run = (r) => {
    const left = r.seconds_left === null ? "" : `, about ${duration(r.seconds_left)} left`;
    const numbers = [["grad norm", r.grad_norm], ["update norm", r.update_norm]].filter((pair) => pair[1] !== null).map(([name, x]) => `${name} ${short(x)}`);
    if (r.tokens_per_second !== null) numbers.push(`${short(r.tokens_per_second)} tokens/s`);
    return el("article", { class: "run" },
      el("div", { class: "run-head" }, el("h3", {}, r.name), el("span", { class: `state ${r.status}` }, r.status)),
      el("p", {}, `${r.objective}, step ${r.step} of ${r.steps}${left}`),
      thin(r.steps ? r.step / r.steps : 0),
      ...["reward", "loss"].filter((name) => r.curves[name].length).map((name) => curve(name, r.curves[name], r.steps)),
      el("p", { class: "numbers" }, ...numbers.map((text) => el("span", {}, text))),
      ...(r.note ? [el("p", { class: "note" }, r.note)] : []));
  };

  const step = (s) => el("tr", {},
    el("th", { scope: "row" }, s.name),
    el("td", { class: s.status }, s.unseen ? "next by the plan; leaves nothing to see before its end" : s.status),
    el("td", { class: "number" }, s.seconds === null ? "" : duration(s.seconds)));

  // A part is made again only where what it shows has changed, so that nothing moves under a reader's hand.
  const shown = new Map();
  const node = (key, value, make) => {
    const text = JSON.stringify(value);
    if (shown.get(key)?.text !== text) shown.set(key, { text, node: make(value) });
    return shown.get(key).node;
  };
  const list = (id, items, make) => {
    const nodes = items.map((item) => node(`${id} ${item.name}`, item, make)), place = at(id);
    if (nodes.length !== place.children.length || nodes.some((made, i) => made !== place.children[i])) place.replaceChildren(...nodes);
  };

  const draw = (s) => {
    document.title = `${s.share === null ? "" : `${Math.round(100 * s.share)} % `}${s.name} – limbeck watch`;
    at("name").textContent = s.name;
    at("question").textContent = s.question;
    at("status").textContent = status(s);
    at("status").className = `status ${s.status}`;
    at("bar").hidden = s.share === null;
    at("bar").setAttribute("aria-valuenow", Math.round(100 * (s.share ?? 0)));
    at("bar").firstElementChild.style.width = `${100 * (s.share ?? 0)}%`;
    at("counts").textContent = counts(s);
    at("counted").textContent = `${s.counted[0].toUpperCase()}${s.counted.slice(1)}.`;
    at("kinds").replaceChildren(...kinds(s.steps));
    const about = [s.notes, s.status === "stopped", s.go_on, s.report];
    list("notes", [{ name: "all", about }], () => el("div", {}, ...notes(s)));
    const runs = ORDER.flatMap((wanted) => s.runs.filter((r) => r.status === wanted));
    at("runs-part").hidden = !runs.length;
    list("runs", runs, run);
    at("steps-part").hidden = !s.steps.length;
    list("steps", s.steps, step);
  };

  const lose = (why) => {
    at("lost").textContent = why;
    at("lost").hidden = !why;
  };

  const poll = async () => {
    let wait = EVERY;
    try {
      const answer = await fetch("state.json", { cache: "no-store" }), state = await answer.json();
      if (state.error === undefined) {
        draw(state);
        wait = state.status === "complete" ? WHEN_DONE : EVERY;
      }
      lose(state.error ?? "");
    } catch {
      lose("limbeck watch does not answer; what stands here is as old as its last answer.");
    }
    setTimeout(poll, wait);
  };
  poll();
})();
