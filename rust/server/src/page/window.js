"use strict";
// The page. `/events` says that something happened; `/state` says how things are then. The fold is the server's, so this
// page cannot disagree with it. All that is shown is set as text: what a model or a program says stays text.

const ROLES = ["orchestrator", "optimizer", "executor", "reviewer"];
const PHASES = ["prompt_to_spec", "spec_to_full_spec", "full_spec_to_plan", "plan_to_artifacts", "complete"];
const LOOK = {
  done: "good", accepted: "good", idle: "good",
  running: "busy", busy: "busy", reviewing: "busy", starting: "busy",
  paused: "warn", waiting: "warn", interrupted: "warn", budget: "warn", restarting: "warn", slow: "warn", suspect: "warn",
  failed: "bad", conflict: "bad", degraded: "bad", quarantined: "bad", cancelled: "warn",
};
const LOUD = new Set(["task_failed", "run_failed", "work_dead", "role_degraded", "agent_quarantined", "agent_health_degraded",
  "agent_failed", "work_failed", "budget_exceeded", "gap", "cut"]);
const MOST_EVENTS = 60;
const SOON = 250; // milliseconds: events come in bunches
const LOOK_AGAIN = 2000; // that a process was killed is no event

const place = (id) => document.getElementById(id);
let shown = null;
let asked = null;
let lastSequence = 0;

function element(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (name === "click") made.addEventListener("click", value);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false && child !== ""));
  return made;
}

const chip = (state, text) => element("span", {class: `chip ${LOOK[state] ?? ""}`}, text ?? state);
const firstLine = (text) => (text ?? "").split("\n").find((line) => line.trim()) ?? "";
const tokensOf = (usage) => usage.input_tokens + usage.output_tokens + usage.cache_read_tokens + usage.cache_write_tokens;
const count = (number) => number >= 1e6 ? `${(number / 1e6).toFixed(1)}M` : number >= 1e4 ? `${(number / 1e3).toFixed(1)}k` : String(number);
const dollars = (number) => number.toFixed(number > 0 && number < 0.1 ? 4 : 2);
const clock = (at) => at ? new Date(at).toLocaleTimeString([], {hour12: false}) : "";
const many = (number, what) => `${number} ${what}${number === 1 ? "" : "s"}`;

function took(from, to) {
  const seconds = Math.max(0, (new Date(to) - new Date(from)) / 1000);
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`;
  return `${Math.floor(seconds / 3600)} h ${Math.floor(seconds % 3600 / 60)} min`;
}

function render(state) {
  shown = state;
  const {picture, live} = state;
  const runs = Object.entries(picture.runs).map(([id, run]) => ({id, ...run, state: live.runs[id] ?? run.state}));
  runs.sort((one, other) => other.submitted_at.localeCompare(one.submitted_at));
  const boots = Object.entries(live.boots).sort(([, one], [, other]) => Number(other.alive) - Number(one.alive));
  place("figures").replaceChildren(...figures(runs, live));
  place("alerts").replaceChildren(...alerts(picture, live, runs));
  place("tree").replaceChildren(...(boots.length
    ? boots.map(([boot, seen]) => processCard(boot, seen, picture.boots[boot] ?? {degraded: {}}, runs))
    : [element("p", {class: "empty"}, "No process has agents now. ", element("code", {}, "mnemosyne orchestrate"), " starts one.")]));
  place("runs").replaceChildren(...(runs.length
    ? runs.map((run) => runCard(run, state.at))
    : [element("p", {class: "empty"}, "There are no runs in this store yet.")]));
}

function figures(runs, live) {
  const sum = (read) => runs.reduce((all, run) => all + read(run.usage), 0);
  const working = runs.filter((run) => run.state === "running" || run.state === "waiting").length;
  const rows = [
    ["runs at work", working], ["items running", live.queue.running], ["ready", live.queue.ready],
    ["waiting", live.queue.waiting], ["tokens", count(sum(tokensOf))], ["USD", dollars(sum((usage) => usage.cost_usd))],
  ];
  return rows.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, String(value))));
}

function alerts(picture, live, runs) {
  const found = [];
  const say = (what, why) => found.push(element("p", {class: "alert"}, what, element("span", {}, why)));
  if (live.trouble) say("The store cannot be read now: what is shown is older.", live.trouble.message);
  for (const [boot, seen] of Object.entries(live.boots)) {
    const told = picture.boots[boot];
    if (!seen.alive) continue;
    for (const [role, reason] of Object.entries(told?.degraded ?? {})) say(`${role} is degraded`, reason);
    if (told?.intake_stopped) say(`Process ${seen.pid} takes in no work`, told.intake_stopped);
    if (seen.silent_seconds) say(`Process ${seen.pid} is silent`, `It has renewed none of its leases for ${Math.round(seen.silent_seconds)} s.`);
    for (const agent of seen.agents) if (agent.state === "quarantined") say(`${agent.agent_id} is in quarantine`, agent.reason ?? "");
  }
  for (const run of runs) if (run.state === "interrupted") say(`${run.id} is interrupted`, `To go on: mnemosyne resume ${run.id}`);
  return found;
}

function processCard(boot, seen, told, runs) {
  const mine = runs.filter((run) => run.boot === boot && !["done", "failed", "cancelled"].includes(run.state));
  const run = mine[0]?.id ?? runs.find((one) => one.boot === boot)?.id;
  const title = seen.alive ? `Process ${seen.pid ?? ""}` : `Process ${seen.pid ?? ""}, which is gone`;
  return element("article", {class: "card", "data-boot": boot},
    element("header", {}, element("h3", {}, title), element("span", {class: "mono soft"}, boot),
      mine.length ? element("span", {class: "soft"}, `on ${mine.map((one) => one.id).join(", ")}`) : null),
    ROLES.map((role) => roleBlock(role, seen, told, run)));
}

function roleBlock(role, seen, told, run) {
  const agents = seen.agents.filter((agent) => agent.role === role);
  const why = seen.alive ? told.degraded?.[role] : undefined;
  if (!agents.length && why === undefined) return null;
  return element("section", {class: why === undefined ? "role" : "role degraded", "data-role": role},
    element("p", {}, role, why === undefined ? null : [" is degraded ", element("span", {class: "why"}, why)]),
    element("ul", {class: "agents"}, agents.map((agent) => agentRow(agent, seen, run, why))));
}

function agentRow(agent, seen, run, roleWhy) {
  const facts = [`generation ${agent.generation}`];
  if (agent.error_count) facts.push(`${many(agent.error_count, "error")} in its window`);
  if (agent.restarts) facts.push(many(agent.restarts, "restart"));
  if (agent.item) facts.push(`on ${agent.item}`);
  const why = agent.reason ?? (agent.error_count ? agent.last_error : null);
  const act = (verb, label) => element("button", {click: (event) => tell(event, `/runs/${run}/agents/${agent.agent_id}/${verb}`)}, label);
  const loud = ["quarantined", "degraded", "suspect"].includes(agent.state);
  return element("li", {"data-agent": agent.agent_id},
    element("span", {class: "mono"}, agent.agent_id), chip(agent.state),
    element("span", {class: "more"}, facts.join(" · "), " ",
      run && seen.alive && agent.state === "quarantined" ? act("release", "release") : null,
      run && seen.alive && loud ? act("restart", "restart") : null),
    why && why !== roleWhy && seen.alive ? element("span", {class: "why"}, firstLine(why)) : null);
}

function runCard(run, now) {
  const act = (verb, label, sure) => element("button", {click: (event) => (!sure || window.confirm(sure)) && tell(event, `/runs/${run.id}/${verb}`)}, label);
  const open = !["done", "failed", "cancelled"].includes(run.state);
  const working = ["running", "waiting"].includes(run.state);
  return element("article", {class: "card", "data-run": run.id},
    element("header", {}, element("h3", {class: "mono"}, run.id), chip(run.state),
      element("span", {class: "soft"}, took(run.submitted_at, run.ended_at ?? now)),
      element("span", {class: "actions"},
        working ? act("pause", "Pause") : null,
        open && !working ? act("resume", "Resume") : null,
        open ? act("cancel", "Cancel", `Cancel ${run.id}? It cannot be resumed then.`) : null)),
    run.reason && run.state !== "running" ? element("p", {class: "why run"}, firstLine(run.reason)) : null,
    element("ol", {class: "phases"}, PHASES.map((phase) => {
      const state = run.phases[phase]?.state ?? "pending";
      return element("li", {class: state, title: state}, phase.replaceAll("_", " "));
    })),
    run.tasks.length ? taskTable(run.tasks) : null,
    element("p", {class: "line"}, element("span", {}, `${count(tokensOf(run.usage))} tokens`), element("span", {}, many(run.usage.turns, "turn")),
      element("span", {}, `${dollars(run.usage.cost_usd)} USD`), run.resumes ? element("span", {}, many(run.resumes, "resume")) : null,
      element("span", {class: "mono"}, run.workspace ?? "")));
}

function taskTable(tasks) {
  const head = ["task", "", "state", "attempt"].map((name) => element("th", {scope: "col"}, name));
  return element("table", {}, element("thead", {}, element("tr", {}, head, element("th", {scope: "col", class: "number"}, "tokens"))),
    element("tbody", {}, tasks.map((task) => element("tr", {"data-task": task.id},
      element("td", {class: "mono"}, task.id),
      element("td", {}, task.title, task.reason ? element("div", {class: "why"}, firstLine(task.reason)) : null),
      element("td", {}, chip(task.until ? "waiting" : task.state, task.until ? `waits until ${clock(task.until)}` : task.step ?? task.state),
        task.agent ? element("div", {class: "soft"}, task.agent) : null),
      element("td", {}, String(task.attempt)),
      element("td", {class: "number"}, count(tokensOf(task.usage)))))));
}

function eventRow(sequence, at, kind, about, text) {
  const list = place("events");
  list.prepend(element("li", {}, element("span", {class: "soft"}, String(sequence)), element("span", {class: "soft"}, clock(at)),
    element("span", {class: LOUD.has(kind) ? "bad" : ""}, kind.replaceAll("_", " ")),
    element("span", {}, element("span", {class: "mono"}, about), " ", text)));
  while (list.childElementCount > MOST_EVENTS) list.lastElementChild.remove();
}

async function tell(event, path) {
  const button = event.currentTarget;
  button.disabled = true;
  try {
    const answer = await fetch(path, {method: "POST", headers: {"Content-Type": "application/json"},
      body: JSON.stringify({reason: "from the window"})});
    if (!answer.ok) {
      const {error} = await answer.json();
      eventRow("", new Date().toISOString(), "refused", error.code, `${error.message}. ${error.reason}. ${error.hint}`);
    }
  } catch {
    connection("lost", "not sent: the window does not answer");
  }
  refreshSoon();
}

function connection(state, text) {
  place("connection").className = state;
  place("connection").textContent = text;
}

async function refresh() {
  asked = null;
  let answer;
  try {
    answer = await fetch("/state");
  } catch {
    connection("lost", "the window does not answer; what is shown is older");
    return;
  }
  if (answer.status === 401) return window.location.reload();
  if (!answer.ok) return connection("lost", (await answer.json()).error.message);
  const state = await answer.json();
  if (!shown || state.sequence >= shown.sequence) render(state);
  if (stream.readyState === EventSource.OPEN) connection("live", `live, event ${Math.max(state.sequence, lastSequence)}`);
}

function refreshSoon() {
  asked ??= window.setTimeout(refresh, SOON);
}

const stream = new EventSource("/events");
stream.addEventListener("open", () => connection("live", "live"));
stream.addEventListener("error", () => connection("lost", "reconnecting; what is shown is older"));
stream.addEventListener("snapshot", (message) => {
  const state = JSON.parse(message.data);
  lastSequence = state.sequence;
  render(state);
  connection("live", `live, event ${state.sequence}`);
});
stream.addEventListener("message", (message) => {
  const event = JSON.parse(message.data);
  lastSequence = event.sequence;
  const {data} = event;
  const about = [event.run, event.task, event.agent].filter(Boolean).join(" ") || event.role || "";
  eventRow(event.sequence, event.at, event.kind, about, firstLine(String(data.title ?? data.reason ?? data.error ?? data.feedback ?? data.name ?? data.summary ?? data.description ?? "")));
  refreshSoon();
});
stream.addEventListener("gap", (message) => {
  const gap = JSON.parse(message.data);
  eventRow(gap.to, new Date().toISOString(), "gap", "", `events ${gap.from} to ${gap.to} were not sent one by one`);
});
stream.addEventListener("cut", (message) => eventRow("", new Date().toISOString(), "cut", "", JSON.parse(message.data).reason));
window.setInterval(() => document.hidden || refreshSoon(), LOOK_AGAIN);
