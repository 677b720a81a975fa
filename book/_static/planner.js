/* The planner: what to run for a budget, how sure that is, what nearly won and what was left out.

   The answers of public models to every problem, and the resamples of the problems, come from kl-planner-data.js, which
   the build writes from the package (kinetics_lab.planner.page); the law is in law.js. The functions here are those of
   kinetics_lab.planner, and a test compares them on random questions. */
const klPlanner = (() => {
  "use strict";
  const law = klLaw, { sum, digits } = law, RESERVE = 0.1;
  const mean = (values) => sum(values) / values.length;
  const round = (x, scale = 1e12) => Math.round(x * scale) / scale;  // equal but for rounding is equal
  const kind = (policy) => policy.split(":")[0];
  const unique = (values) => [...new Set(values)];
  const kinds = (set) => unique(set.settings.map(([, policy]) => kind(policy)));
  const who = (setting) => `${setting.model}, ${setting.policy}`;
  const text = (one) => one ? `${one.n} x ${who(one.setting)}` : "";
  const drawn = {};  // outcomes by strategy, by counts: they stay from question to question
  const atOnce = (q) => q.strategy === "best-of" || q.strategy === "majority";  // all answers, side by side

  function group(list, key) {
    const found = {};
    for (const one of list) (found[key(one)] ??= []).push(one);
    return found;
  }

  // --- what is drawn, as planner/strategy.py ---------------------------------------------------------

  // For j = 0..n draws: the chance that none is accepted, that a right one is, that none is and the j-th is right.
  function checked(n, c, hit, alarm) {
    const none = [1], right = [0], last = [0];
    let waiting = [1];  // the chance that all draws so far were rejected, by the right ones among them
    for (let j = 0; j < n; j++) {
      const ofRight = waiting.map((chance, r) => chance * Math.max(c - r, 0) / (n - j));
      const next = waiting.map((chance, r) => (1 - alarm) * chance * Math.max(n - c - (j - r), 0) / (n - j)
        + (1 - hit) * (ofRight[r - 1] ?? 0));
      if (hit < 1) next.push((1 - hit) * ofRight[j]);
      right.push(right[j] + hit * sum(ofRight));
      last.push((1 - hit) * sum(ofRight));
      none.push(sum(next));
      waiting = next;
    }
    return { none, right, last };
  }

  function choose(n, k) {
    let found = 1;
    for (let i = 1; i <= k; i++) found = found * (n - k + i) / i;
    return k > n ? 0 : found;
  }

  function vote(n, c, most, differ) {  // bounds: all wrong answers agree, or no two do
    let found = 0;
    for (let r = 1; r <= most; r++) {
      const wrong = most - r, tied = differ ? r === 1 : r === wrong, won = differ ? r > 1 : r > wrong;
      const worth = won ? 1 : tied ? (differ ? 1 / most : 0.5) : 0;
      found += worth && choose(c, r) * choose(n - c, wrong) / choose(n, most) * worth;
    }
    return found;
  }

  // Of n answers with c right ones, for N = 0..n: accuracy, at best, answers drawn, paid for (in answers), their waves.
  function outcomes(n, c, q) {
    const [hit, alarm, check] = q.strategy === "verified" ? [q.hit, q.false_alarm, q.check ?? 0] : [1, 0, 0];
    const one = checked(n, c, hit, alarm), voted = q.strategy === "majority", all = atOnce(q);
    const found = [{ accuracy: 0, best: 0, draws: 0, paid: 0, waves: 0 }];
    for (let k = 1, drawn = 0; k <= n; k++) {
      drawn += one.none[k - 1];
      const accuracy = round(voted ? vote(n, c, k, false) : one.right[k] + one.last[k]);
      found.push({ accuracy, best: voted ? round(vote(n, c, k, true)) : accuracy, draws: all ? k : drawn,
        paid: all ? k : drawn * (1 + check), waves: all ? 1 : drawn });
    }
    return found;
  }

  // The mean over what could have been drawn: of a measured setting one count, of a predicted one several, with shares.
  function averaged(counts, outcome) {
    if (counts.length === 1) return outcome(counts[0][0]);
    const each = counts.map(([c]) => outcome(c));
    return each[0].map((row, k) => Object.fromEntries(Object.keys(row).map((name) =>
      [name, round(sum(counts.map(([, share], i) => share * each[i][k][name])))])));
  }

  // --- the data ------------------------------------------------------------------------------------

  // A set with its packed numbers read, once: settings { model, policy, prompt, n, c (tallied), mean, square, ... } and
  // weights [resample, problem].
  function read(set, letters) {
    if (set.read) return set.read;
    const size = set.problems.length, value = Object.fromEntries([...letters].map((letter, i) => [letter, i]));
    function numbers(packed, widths) {  // rows of numbers, each as many digits wide as its column says
      const found = [];
      for (let at = 0; at < packed.length;) {
        found.push(widths.map((width) => {
          let number = 0;
          for (const end = at + width; at < end; at++) number = 81 * number + value[packed[at]];
          return number;
        }));
      }
      return found;
    }
    const tally = (drawn) => unique(drawn).map((c) => [c, drawn.filter((x) => x === c).length / drawn.length]);
    const weights = numbers(set.resamples, [1]).flatMap(([pair]) => [Math.floor(pair / 9) / size, pair % 9 / size]);
    const settings = set.settings.map(([model, policy, prompt, given, scales, widths, packed, few, context]) => {
      const draws = packed.length / size - sum(widths), rows = numbers(packed, [...Array(draws).fill(1), ...widths]);
      const n = rows.map((_, p) => given[p] ?? given);
      const [lengths, squares] = scales.map((scale, j) => rows.map((row, p) => row[draws + j] / (scale || n[p])));
      return { model, policy, prompt: set.prompts[prompt], n, c: rows.map((row) => tally(row.slice(0, draws))),
        mean: lengths, square: squares, predicted: draws > 1, few, context,
        spread: lengths.map((length, p) => Math.sqrt(Math.max(squares[p] - length * length, 0))) };
    });
    return set.read = { weights, settings };
  }

  // The settings of the models asked for, with oracle top-k as asked for, and how each reads: as offers.offered.
  function offered(data, settings, q) {
    const kept = settings.filter((one) => (q.predicted || !one.predicted)
      && (!q.models.length || q.models.includes(one.model)) && (q.topk !== "out" || kind(one.policy) !== "topk"));
    return kept.map((one) => {
      const oracle = kind(one.policy) === "topk", scan = oracle && q.topk === "scan", reads = data.policies[one.policy];
      return { ...one, policy: one.policy + (scan ? ":false" : ""), oracle: oracle && !scan,
        reads: scan ? { ...reads, scored: 1 } : reads };
    });
  }

  // --- what an answer costs, as planner/price.py -----------------------------------------------------

  // How a model's weights and cache are stored: as told, as published, as the clock measured them, or in the precision
  // of the device.
  function storing(data, q, model) {
    const own = (name) => data.models[name].precision ?? data.stored.bf16;
    if (q.weights === "published") {
      const kv = unique(data.sets[q.data].settings.map(([name]) => q.kv || own(name).stored.kv));
      const stored = law.precision(data, own(model), "", q.kv);
      return { ...stored, weights: "as published", kv: kv.length > 1 ? "as published" : kv[0] };
    }
    const told = q.weights || q.kv || q.clock;
    return law.precision(data, data.stored[told ? "bf16" : data.hardware[q.hardware].own], q.weights, q.kv);
  }

  // How one setting is served, by each batch that may be tried, the largest first: seconds to the first token and for
  // each further one, and seconds of a device for an answer to each problem; or why it is not served.
  function serve(data, set, one, q) {
    const model = data.models[one.model], device = data.hardware[q.hardware];
    const clock = data.clocks[`${q.hardware}:${q.clock}`];
    const stored = storing(data, q, one.model), size = stored.size;
    const rate = device.peaks[stored.rate] ?? device.peak, tokens = sum(one.mean);
    const held = sum(one.mean.map((length, p) => one.prompt[p] * length + one.square[p] / 2));
    const context = Math.max(held / Math.max(tokens, 1), 1), given = q.batch === "within" ? null : q.batch;
    const room = law.fit(model, device, size, context, given, RESERVE, q.devices), { devices, way } = room;
    if (room.reason) return room;
    const prompts = {};
    for (const n of new Set(one.prompt)) prompts[n] = law.prefill(model, device, size, rate, way, n, clock);
    const seconds = (parts) => law.total(law.stepSeconds(device, rate, clock, parts, model.layers, true));
    const step = (batch, way, reads) => seconds(law.stepParts(model, size, way, reads, batch, context));
    const alone = clock ? [] : one.mean.map((length, p) =>
      seconds(law.costParts(model, size, one.reads, one.prompt[p], length, one.square[p], set.dense_layers)));

    function side(batch) {
      const share = set.dense_layers / model.layers, dense = { tokens: null, scored: 0 }, [single] = model.ways;
      const weights = law.weightsRead(model, size, batch) / batch / device.bandwidth;
      const spread = devices > 1 ? devices * step(batch, way, one.reads) / step(batch, single, one.reads) : 1;
      const timed = clock && (1 - share) * step(batch, way, one.reads) + share * step(batch, way, dense);
      const each = one.mean.map((length, p) =>
        clock ? length * timed * devices / batch : spread * (alone[p] + length * weights));
      return { batch, devices, groups: way.data, tpot: timed ?? sum(each) / Math.max(tokens, 1) * batch / devices,
        ttft: one.prompt.map((n) => prompts[n].first),
        each: each.map((spent, p) => spent + prompts[one.prompt[p]].work) };
    }

    const halved = [...Array(50).keys()].map((k) => 2 ** k).filter((batch) => batch < room.batch).reverse();
    return { batches: [given || room.batch, ...(q.batch === "within" ? halved : [])], side };
  }

  // --- the plan, as planner/plan.py ------------------------------------------------------------------

  function percent(share, decimals) {
    if (decimals === undefined && share >= 0.995 && share < 1) return "over 99%";
    const scale = 10 ** (decimals ?? 0), down = 100 * share * scale % 2 === 0.5;  // halves to even, as in the package
    return `${(down ? Math.floor(100 * share * scale) / scale : 100 * share).toFixed(decimals ?? 0)}%`;
  }

  // The best of them that costs no more, of equally good ones the cheapest, of equally cheap ones the first.
  function best(candidates, budget) {
    return candidates.filter((one) => one.price <= budget).reduce((found, one) =>
      !found || one.value > found.value || (one.value === found.value && one.price < found.price) ? one : found, null);
  }

  function quantile(sorted, share) {
    const at = share * (sorted.length - 1), low = Math.floor(at);
    return sorted[low] + (at - low) * ((sorted[low + 1] ?? sorted[low]) - sorted[low]);
  }

  // One setting with at most n answers on one server: what it solves, costs and how long an answer takes, in the mean.
  function candidate(q, setting, side, each, n) {
    const rows = each.map((one) => one[n]), wave = atOnce(q) ? n : 1, k = Math.min(wave, side.batch);
    const rounds = Math.ceil(wave / k), above = (k - 1) / Math.sqrt(2 * k - 1);
    const waited = (row, p) =>
      row.waves * rounds * (side.ttft[p] + side.tpot * (setting.mean[p] + above * setting.spread[p]));
    const accuracy = rows.map((row) => row.accuracy), spent = mean(rows.map((row, p) => row.paid * side.each[p]));
    const price = spent * (q.unit === "usd" ? q.price / 3600 : 1);
    const value = round(mean(accuracy)), answer_s = mean(rows.map(waited));
    return { setting, side, rows, n, accuracy, value, spent, price, answer_s };
  }

  function told(one, q) {
    const { setting, side, rows, spent } = one, usd = spent * (q.price || NaN) / 3600;
    const tokens = mean(rows.map((row, p) => row.draws * setting.mean[p]));
    return { setting: text(one), model: setting.model, policy: setting.policy, n_trials: one.n, oracle: setting.oracle,
      accuracy: one.value, best_case: mean(rows.map((row) => row.best)), cost: one.price, tokens, usd,
      draws: mean(rows.map((row) => row.draws)), devices: side.devices, batch: side.batch, ttft_s: mean(side.ttft),
      tpot_s: side.tpot, answer_s: one.answer_s, context: setting.context, usd_per_mtok: usd / tokens * 1e6 };
  }

  // What cannot be chosen, or not with more answers, and why; and kinds of attention that were not run with a model.
  function leftOut(settings, considered, refused) {
    const found = {}, most = Math.max(...considered.flatMap(({ n }) => n));
    for (const [model, all] of Object.entries(group(considered, (one) => one.model))) {
      const reasons = all.map((one) => refused[who(one)] ?? (Math.min(...one.n) < most ? one.few : ""));
      const alike = all.length > 1 && reasons.every((reason) => reason === reasons[0]);
      all.forEach((one, i) => { if (reasons[i]) found[alike ? model : who(one)] = reasons[i]; });
    }
    for (const [name, ran] of Object.entries(group(settings, ({ policy }) => kind(policy)))) {
      const models = ran.map(({ model }) => model), every = unique(settings.map(({ model }) => model));
      const lacks = every.filter((model) => !models.includes(model));
      if (lacks.length) found[`${name} with ${lacks.join(", ")}`] = "never run";
    }
    return found;
  }

  // Engines and the lines that start them, as planner/serve.py.
  function start(data, stored, { setting, side }) {
    const plain = (name, known) => name in known || data.as_it_is.includes(name);
    const { groups } = side, own = data.models[setting.model].precision?.weights ?? "bf16";
    const engines = data.checkpoints[setting.model] ? Object.entries(data.engines) : [];
    return engines.map(([engine, [begin, devices, batch, longest, memory, weights, kv, spread]]) => {
      const odd = !plain(stored.weights, weights) ? stored.weights : !plain(stored.kv, kv) && stored.kv;
      if (setting.policy !== "dense") return [engine, `none: no flag makes it read as ${setting.policy} does `
        + "(`kinetics-lab generate --policy` can)"];
      if (own !== "bf16" && stored.weights !== "as published")
        return [engine, `none: its checkpoint is in ${own} and is loaded so; price weights as published`];
      if (odd) return [engine, `none: no flag known here turns a BF16 checkpoint into ${odd}`];
      if (groups > 1 && !spread)
        return [engine, `none: no flag known here shares the answers out to ${groups} groups of devices`];
      const words = [begin, data.checkpoints[setting.model], `--dtype bfloat16 ${devices} ${side.devices / groups}`,
        groups > 1 && `${spread} ${groups}`,
        weights[stored.weights] && `--quantization ${weights[stored.weights]}`,
        kv[stored.kv] && `--kv-cache-dtype ${kv[stored.kv]}`, `${batch} ${Math.ceil(side.batch / groups)}`,
        `${longest} ${setting.context}`, `${memory} ${1 - RESERVE}`];
      return [engine, words.filter(Boolean).join(" ")];
    });
  }

  // All settings that can be served within the limits, those to choose among, and what cannot be and why.
  function survey(data, q) {
    const set = data.sets[q.data], { settings } = read(set, data.digits), refused = {}, slow = [];
    const wanted = q.policies.length ? q.policies : kinds(set);
    const known = drawn[[q.strategy, q.hit, q.false_alarm, q.check]] ??= {};
    const allowed = (setting) => wanted.includes(kind(setting.policy));
    const ran = offered(data, settings, q), considered = ran.filter((one) => one.policy === "dense" || allowed(one));
    const { max_seconds, max_tpot } = q;
    const quick = ({ answer_s, side }) => answer_s <= (max_seconds || Infinity) && side.tpot <= (max_tpot || Infinity);
    const candidates = considered.flatMap((setting) => {
      const server = serve(data, set, setting, q);
      if (server.reason) { refused[who(setting)] = server.reason; return []; }
      const outcome = (n) => (c) => known[`${n} ${c}`] ??= outcomes(n, c, q);
      const each = setting.c.map((c, p) => averaged(c, outcome(setting.n[p]))), found = [];
      // The more answers, the longer the wait: the largest batch that keeps the limits never grows with n.
      const [largest, ...smaller] = server.batches, most = Math.min(...setting.n);
      for (let n = 1, side = server.side(largest), one; n <= most && (n === 1 || quick(one)); n++) {
        one = candidate(q, setting, side, each, n);
        while (!quick(one) && smaller.length) one = candidate(q, setting, side = server.side(smaller.shift()), each, n);
        if (quick(one)) found.push(one);
        else if (n === 1) slow.push(one);
      }
      if (!found.length) {
        const { side, answer_s } = slow.at(-1);
        refused[who(setting)] = `too slow: ${digits(1e3 * side.tpot)} ms a token, ${digits(answer_s)} s a problem`;
      }
      return found;
    });
    return { ran, considered, refused, slow, candidates, mine: candidates.filter((one) => allowed(one.setting)) };
  }

  // The plan for one budget; numbers and names in, numbers and names out. An Error says what nothing keeps.
  function plan(data, q) {
    const set = data.sets[q.data], { weights } = read(set, data.digits), budget = q.budget || 1e9;
    const { ran, considered, refused, slow, candidates, mine } = survey(data, q);
    if (!mine.length) throw new Error(nothing(candidates, slow, refused));
    const dense = best(candidates.filter((one) => one.setting.policy === "dense"), budget), chosen = best(mine, budget);
    const result = { left_out: leftOut(ran, considered, refused), n_settings: mine.length,
      dense: dense ? dense.value : NaN, dense_cost: dense ? dense.price : NaN, dense_setting: text(dense), rivals: [] };
    const cheaper = mine.filter((one) => chosen && one.price < chosen.price * (1 - 1e-9));  // equal but for rounding is equal
    const near = chosen && cheaper.filter((one) => one.value >= chosen.value - data.frugal - 1e-9)
      .reduce((a, b) => a && a.price <= b.price ? a : b, null);
    const started = (one) => one ? start(data, storing(data, q, one.setting.model), one) : [];
    if (chosen) return { ...result, ...told(chosen, q), ...rivalry(weights, mine, budget, chosen, set.ends, data.tie, near),
      frugal: text(near), frugal_accuracy: near ? near.value : NaN, frugal_cost: near ? near.price : NaN,
      start: started(chosen), start_dense: started(dense) };
    const cheapest = mine.reduce((a, b) => b.price < a.price ? b : a);
    return { ...result, setting: "", cheapest: text(cheapest), least: cheapest.price };
  }

  // With no attention chosen: what can be started today, which is dense attention or a model's own as it is published.
  const today = (data, q) => q.policies.length || !kinds(data.sets[q.data]).includes("dense") ? q : { ...q, policies: ["dense"] };

  // Whether another solves more than what was found, or as much for 1 % less; as it is told.
  function better(other, found) {
    const gain = other && other.value - (found.setting ? found.accuracy : -1);
    return other && (gain > 1e-9 || (gain > -1e-9 && other.price <= 0.99 * found.cost))
      ? { devices: other.side.devices, setting: text(other), accuracy: other.value, cost: other.price,
        predicted: other.setting.predicted } : null;
  }

  // What sparse attention would give beside that, which no engine serves.
  const beside = (data, q, found) => q.policies.length || kinds(data.sets[q.data]).length < 2 ? null
    : better(best(survey(data, q).mine, q.budget || 1e9), found);

  // What a plan on the fewest devices would be on so many for every model: the best, where that is better.
  function elsewhere(data, q, found) {
    if (q.devices) return null;
    const counts = unique(Object.values(data.models)[0].ways.map(({ devices }) => devices));
    const tried = counts.map((devices) => best(survey(data, { ...q, devices }).mine, q.budget || 1e9)).filter(Boolean);
    const most = tried.reduce((a, b) => a && (round(a.value, 1e9) > round(b.value, 1e9)
      || (round(a.value, 1e9) === round(b.value, 1e9) && a.price <= b.price)) ? a : b, null);
    return better(most, found);
  }

  // Under a limit of time: what would be best with all answers side by side, if that is better, and by times of kernels.
  function limits(data, q, found) {
    const of = (other) => best(survey(data, { ...q, ...other }).mine, q.budget || 1e9);
    const clock = !q.clock && Object.keys(data.clocks).find((name) => name.startsWith(`${q.hardware}:`));
    const paid = q.strategy === "until-right" && better(of({ strategy: "best-of" }), found);
    return { paid, clock, timed: clock && better(of({ clock: clock.split(":")[1] }), {}) };
  }

  function nothing(candidates, slow, refused) {
    const least = (read) => digits(Math.min(...slow.map(read)));
    if (candidates.length) return "No setting with this attention can be served.";
    if (!slow.length) return `No model can be served: ${unique(Object.values(refused)).join("; ")}.`;
    return `No setting keeps the limits: the fastest takes ${least((one) => one.side.tpot)} s a token, the shortest `
      + `${least((one) => one.answer_s)} s a problem.`;
  }

  // How the winner fares against every other model and policy on problems drawn anew.
  function rivalry(weights, mine, budget, chosen, ends, enough, near) {
    const names = Object.values(group(mine, (one) => who(one.setting))).map((all) => best(all, budget))
      .filter(Boolean).sort((a, b) => a.price - b.price);
    const size = chosen.accuracy.length, length = weights.length / size;
    const me = names.findIndex((one) => one.setting === chosen.setting);
    const draws = names.map(({ accuracy }) => Float64Array.from({ length }, (_, b) => {
      let solved = 0;
      for (let p = 0; p < size; p++) solved += weights[b * size + p] * accuracy[p];
      return solved;
    }));
    const sorted = draws[me].slice().sort(), even = draws.map((values) => values.map((x) => round(x, 1e9)));
    const times = names.map(() => 0), others = [...names.keys()].filter((i) => i !== me);
    for (let b = 0; b < length; b++) {
      let top = 0;
      for (let i = 1; i < names.length; i++) if (even[i][b] > even[top][b]) top = i;
      times[top] += 1;
    }
    const won = times.map((count) => count / length), again = won[me];
    const predicted = (list) => unique([...list.map((i) => names[i]), ...(near ? [near] : [])]
      .filter(({ setting }) => setting.predicted).map(({ setting }) => who(setting))).sort();
    const found = { low: quantile(sorted, ends[0]), high: quantile(sorted, ends[1]), again };
    if (!others.length) return { ...found, runner_up: "", rivals: [], predicted: predicted([me]) };
    const second = others.reduce((a, b) => won[b] > won[a]
      || (won[b] === won[a] && round(names[b].value) > round(names[a].value)) ? b : a);
    const beaten = even[me].filter((x, b) => x > even[second][b] || (x === even[second][b] && me < second));
    const often = others.filter((i) => won[i] >= 0.1).sort((a, b) => won[b] - won[a] || a - b), tie = again < enough;
    const named = tie ? [...often, second] : [second], rivals = tie ? (often.length ? often : [second]) : [];
    return { ...found, runner_up: text(names[second]), runner_up_accuracy: names[second].value,
      runner_up_cost: names[second].price,
      beats: beaten.length / length, predicted: predicted([me, ...named]),
      rivals: rivals.map((i) => `${who(names[i].setting)} (${percent(won[i])})`) };
  }

  // The line that prints the same numbers.
  function command(q) {
    const verified = ["verified", q.hit, q.false_alarm, ...(q.check ? [q.check] : [])].join(":");
    const strategy = q.strategy === "verified" ? verified : q.strategy !== "until-right" && q.strategy;
    const options = { data: q.data, budget: q.budget || "1e9", unit: q.unit !== "s" && q.unit, strategy,
      hardware: q.hardware, weights: q.weights, kv: q.kv, clock: q.clock && `fitted:${q.hardware}:${q.clock}`,
      price: q.price, "max-seconds-per-answer": q.max_seconds, "max-tpot": q.max_tpot, models: q.models.join(" "),
      policies: q.policies.join(" "), topk: q.topk !== "out" && q.topk, batch: q.batch, devices: q.devices };
    return law.line("kinetics-lab plan", options) + (q.predicted ? " --predicted" : "");
  }

  // --- the page ------------------------------------------------------------------------------------

  law.page("kl-planner", window.klPlannerData, (place, data, copy) => {
    const sparse = (q) => kinds(data.sets[q.data]).includes("topk"), limited = (q) => q.max_seconds || q.max_tpot;
    const shape = (name) => name.startsWith(data.models[name].name) ? "" : data.models[name].name;  // that prices it
    const judged = { when: (q) => q.strategy === "verified" };
    const dollars = (seconds) => Number((seconds * data.first.price / 3600).toPrecision(2));
    const { weights, ...choices } = law.choices(data, "as the device", "datasheet, adding up");
    const published = ["published", "as published"];
    const price = law.price(data), fields = law.fields(place, { ...choices,
      weights: { options: (q) => [...weights.options(q), published], usual: (q) => data.sets[q.data].weights },
      data: { options: () => Object.entries(data.sets).map(([name, { title }]) => [name, title]) },
      budget: { kind: (q) => q.unit, usual: (q) => (q.unit === "usd" ? dollars : Number)(data.sets[q.data].budget) },
      models: { options: (q) => unique(data.sets[q.data].settings.map(([model]) => model))
        .sort((a, b) => data.models[a].multiplied - data.models[b].multiplied)
        .map((name) => [name, name + (shape(name) && ` (${shape(name)})`)]) },
      price: { ...price, wrong: (q) => q.unit === "usd" && !q.price ? "a budget in dollars needs a price" : "" },
      hit: judged, false_alarm: judged, check: judged, topk: { when: sparse },
      policies: { options: (q) => kinds(data.sets[q.data]).filter((name) => name !== "topk" || q.topk !== "out") },
      predicted: { when: (q) => read(data.sets[q.data], data.digits).settings.some((one) => one.predicted) },
      slow: { when: limited }, batch: { when: (q) => !limited(q) || q.slow !== "within" }
    }, { hit: 0.9, false_alarm: 0.1, check: 0, ...data.first }, show);
    let waiting;
    const [said, table, left] = ["said", "table", "left"].map((name) => place.querySelector(`.kl-calc-${name}`));

    function show() {
      let q = fields.read(), found;
      clearTimeout(waiting);
      table.textContent = left.textContent = "";
      if (!q) { said.textContent = "A field needs another value."; copy(""); return; }
      q = { ...q, topk: q.topk ?? "out", batch: q.slow || q.batch };
      fields.keep();
      copy(command(q));
      const asked = today(data, q);
      const tell = (text, kind = "beside") => text && law.make("span", said, text, { "class": `kl-calc-${kind}` });
      waiting = setTimeout(() => {  // after the answer is seen
        tell(hint(elsewhere(data, asked, found ?? {}), q));
        if (found && limited(q)) tell(pace(limits(data, asked, found), q));
      });
      said.textContent = "";
      try { found = plan(data, asked); } catch (error) { tell(error.message, "answer"); tell(kept(asked)); }
      const more = beside(data, q, found ?? {});
      if (found) tell(verdict(found, q), "answer");
      tell(more && sparser(more, q));
      if (!found) return;
      law.rows(table, details(found, q, more));
      list(found.left_out, q);
    }

    function cost(x, q) {
      const usd = q.unit === "usd" ? x : x * q.price / 3600, thousand = `$${digits(1000 * usd)} per 1,000 problems${price.at(q)}`;
      const each = q.unit === "usd" ? `$${digits(x)}` : `${digits(x)} s of one device`;
      return `${each} a problem${q.price ? ` (${thousand})` : ""}`;
    }
    const again = (share) => percent(share, share >= data.tie - 0.005 && share < data.tie ? 1 : undefined);

    // How the answers are drawn, of which a setting names the most.
    function drawing({ n_trials, draws }, q) {
      const answers = `${n_trials} answers`;
      if (n_trials === 1) return "1 answer";
      const until = q.strategy === "verified" ? "accepted" : "right";
      return atOnce(q) ? `${answers}, all paid for`
        : `up to ${answers}, one after another until one is ${until}: ${digits(draws)} on average`;
    }

    // Where the limits of time leave nothing: what would keep them.
    function kept(q) {
      try {
        const other = limited(q) && plan(data, { ...q, models: [], batch: "within", budget: null });
        return other && ` With any model, budget and batch, `
          + `${solving({ ...other, predicted: false }, q, "keeps them and solves")}.`;
      } catch { return ""; }
    }

    function hint(more, q) {
      return more ? ` On ${more.devices} device${more.devices > 1 ? "s" : ""} ${solving(more, q, "solves")}.` : "";
    }

    function pace({ paid, clock, timed }, q) {
      const side = paid ? ` With all answers paid for, side by side, ${solving(paid, q, "keeps the limit and solves")}.` : "";
      const rates = q.clock ? "" : " The limit is judged at the datasheet's rates, which are a bound";
      return side + rates + (clock ? `: by the law fitted to the times of ${data.clocks[clock].engine}'s kernels `
        + `${timed ? solving(timed, q, "keeps it and solves") : "no setting keeps it"}.` : rates && ".");
    }

    const solving = (one, q, word) => `${one.setting} ${word} ${one.predicted ? "a predicted " : ""}`
      + `${percent(one.accuracy, 1)} for ${cost(one.cost, q)}`;
    const sparser = (more, q) => ` With sparse attention ${solving(more, q, "would solve")}, but no engine serves it.`;

    function verdict(found, q) {
      if (!found.setting)
        return `Nothing fits this budget. The cheapest, ${found.cheapest}, costs ${cost(found.least, q)}.`;
      const guessed = found.predicted.includes(`${found.model}, ${found.policy}`) ? "a predicted " : "";
      const solves = `${guessed}${percent(found.accuracy, 1)} of the problems for ${cost(found.cost, q)}`;
      const run = `${found.setting} (${drawing(found, q)})`;
      const today = found.policy === "dense" || isNaN(found.dense) ? "" : ` No engine serves ${found.policy}; `
        + `dense attention reaches ${percent(found.dense, 1)} for ${cost(found.dense_cost, q)} with ${found.dense_setting}.`;
      if (!found.rivals.length) return `Run ${run}: it solves ${solves}.${today}`;
      return `A tie: ${run} solves ${solves}, the most, but wins again in only ${again(found.again)} of `
        + `resamples, beside ${found.rivals.join(" and ")}; other problems may turn the order.${today}`;
    }

    function details(found, q, more) {
      if (!found.setting) return [["Settings compared", law.count(found.n_settings)]];
      const ties = found.rivals.length ? `: a tie with ${found.rivals.join(" and ")}` : "";
      const bound = q.strategy === "majority" && found.best_case > found.accuracy
        ? `, if all wrong answers agree; ${percent(found.best_case, 1)} if no two do` : "";
      const dollars = q.price ? `; $${digits(found.usd_per_mtok)} a million tokens` : "";
      const other = (name, accuracy, price) => name && `${name}: ${percent(accuracy, 1)} for ${cost(price, q)}`
        + (found.predicted.includes(name.replace(/^\d+ x /, "")) ? " (predicted)" : "");
      const second = other(found.runner_up, found.runner_up_accuracy, found.runner_up_cost);
      const own = data.models[found.model].precision ?? data.stored.bf16, kept = storing(data, q, found.model);
      const named = (name, sampled) => name === "as published" ? sampled : name, bits = (name) => data.element_bytes[name];
      const stored = { weights: named(kept.weights, own.weights), kv: named(kept.kv, own.stored.kv) };
      const fewer = [["weights", stored.weights, own.weights], ["a cache", stored.kv, own.stored.kv]]
        .filter(([, now, sampled]) => bits(now) < bits(sampled)).map(([what, now]) => `${what} in ${now}`);
      const chooses = data.models[found.model].mixers.some((m) => m.topk);
      const rounds = atOnce(q) ? Math.ceil(found.n_trials / found.batch) : 1;
      const side = found.batch > 1 ? `${law.count(found.batch)} answers side by side` : "one answer at a time";
      return [["Run", found.setting],
        ["Solved", `${percent(found.accuracy, 1)} (${percent(found.low, 1)} to ${percent(found.high, 1)} for another `
          + `${data.sets[q.data].problems.length} problems, 95%)${bound}`],
        ["Wins again in", second && `${again(found.again)} of 1,000 resamples of the problems${ties}`],
        ["Nearly won", second ? `${second}, beaten in ${percent(found.beats)} of resamples`
          : "no other model or policy fits"],
        [`Cheapest within ${100 * data.frugal} points`, other(found.frugal, found.frugal_accuracy, found.frugal_cost)
          || "this one"],
        ["With dense attention", found.dense_setting !== found.setting && (isNaN(found.dense)
          ? "nothing fits this budget" : other(found.dense_setting, found.dense, found.dense_cost))],
        ["With sparse attention", more ? `${other(more.setting, more.accuracy, more.cost)}; no engine serves it`
          : !q.policies.length && kinds(data.sets[q.data]).length > 1 && "no more"],
        ["Costs", `${cost(found.cost, q)}${dollars}`],
        ["Answers a problem", `${drawing(found, q)}; ${digits(found.tokens)} tokens`],
        ["Time to answer a problem", `${digits(found.answer_s)} s on average${atOnce(q) ? " at most" : ""}`
          + `${found.n_trials > 1 ? ", for all answers drawn" : ""}; an answer's first token comes after `
          + `${digits(found.ttft_s)} s, each further one after ${digits(1e3 * found.tpot_s)} ms`],
        ["Attention", found.policy === "dense" && chooses
          && "its own, sparse as it ships: dense means that nothing of it is changed"],
        ["Priced as", shape(found.model)],
        ["Runs on", `${law.many(data.hardware[q.hardware], found.devices)}, ${side}`
          + (rounds > 1 ? `; those to a problem in ${law.count(rounds)} rounds` : "")],
        ...found.start, ...(found.policy === "dense" ? [] : found.start_dense.map(([engine, line]) =>
          [`${engine}, dense attention`, line])),
        ["Memory", [...found.start, ...found.start_dense].some(([, line]) => !line.startsWith("none")) && data.room],
        ["Not counted", fewer.length && `the effect on accuracy of ${fewer.join(" and ")}: the answers were sampled with `
          + `weights in ${own.weights} and a cache in ${own.stored.kv}`],
        ["Predicted", found.predicted.length ? `${found.predicted.join(" and ")}: never run; the law of difficulty `
          + "says what it would do, and its own error is in no interval" : ""],
        ["Times are", law.times(data, data.clocks[`${q.hardware}:${q.clock}`], stored, found.devices,
          "computing after memory is read, which is no bound", chooses)]];
    }

    // What was left out, by reason; of many for one reason their number, which unfolds.
    function list(found, q) {
      const reasons = { ...found, ...(q.topk === "out" && sparse(q) ? { "oracle top-k": "no engine offers it" } : {}) };
      const names = Object.keys(reasons);
      if (!names.length) return;
      law.make("p", left, "Left out:");
      const lines = law.make("ul", left);
      const tell = (list, some) => Object.entries(group(some, (name) => reasons[name]))
        .forEach(([why, all]) => law.make("li", list, `${all.join("; ")}: ${why}.`));
      for (const [why, some] of Object.entries(group(names, (name) => reasons[name].split(":")[0]))) {
        if (some.length < 4) { tell(lines, some); continue; }
        const fold = law.make("details", law.make("li", lines));
        law.make("summary", fold, `${law.count(some.length)} choices: ${why}`);
        tell(law.make("ul", fold), some);
      }
    }

    show();
  });

  return { plan, today, beside, elsewhere, command };
})();
