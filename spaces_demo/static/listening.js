// The listening test: an introduction, one trial after the other, and a word of thanks.
window.codecplus.listening = (element, props, watch, trigger) => {
  const { Player, bar, context, make } = window.codecplus;
  const root = element.querySelector(".cp-root");
  // The key is a secret between this browser and the server: ratings carry only a hash of it.
  const KEY = "codecplus-listener", OPEN = "codecplus-listening-open";
  const remembered = name => { try { return localStorage.getItem(name); } catch { return null; } };
  const remember = (name, value) => {
    try {
      if (value) localStorage.setItem(name, value); else localStorage.removeItem(name);
    } catch { /* private window */ }
  };
  const button = (text, className, onclick) => Object.assign(make("button", className, text), { type: "button", onclick });
  const WORDS = ["Bad", "Poor", "Fair", "Good", "Excellent"];

  function intro(note) {
    root.replaceChildren();
    const choose = make("div", "cp-choose");
    const offer = (method, title, text) => {
      const card = make("div", "cp-card"), label = remembered(OPEN) === method ? "Go on" : "Begin";
      card.append(make("h3", "", title), make("p", "", text), button(label, "cp-primary", event => {
        event.target.disabled = true;
        event.target.textContent = "One moment…";
        trigger("begin", { method, key: remembered(KEY) });
        setTimeout(() => { event.target.disabled = false; event.target.textContent = label; }, 20000);
      }));
      card.dataset.method = method;
      choose.append(card);
    };
    offer("mushra", "Compare with a reference", "MUSHRA, ITU-R BS.1534: several versions of one clip, each rated from 0 to 100 against the original. The original is hidden among them. About five minutes.");
    offer("acr", "Rate one at a time", "ACR, ITU-T P.800: one clip after the other, each rated from bad to excellent, without a reference. About five minutes.");
    root.append(choose, make("p", "cp-hint", "Use headphones, in a quiet room. Ratings are kept under a random number; nothing else is known of you. Your browser remembers a key, so that you can go on after a break."));
    if (note) root.prepend(make("p", "cp-empty", note));
  }

  function done(value) {
    remember(OPEN, null);
    root.replaceChildren(make("h3", "", "Thank you: your ratings are saved"), make("p", "", "This is what was behind them, with your mean for each:"));
    const list = make("table", "cp-table");
    const highest = value.method === "mushra" ? 100 : 5;
    for (const [name, mean] of value.given) {
      const row = list.insertRow(), meter = make("i", "cp-meter");
      row.insertCell().textContent = name;
      meter.style.width = `${100 * mean / highest}%`;
      row.insertCell().append(meter);
      row.insertCell().textContent = mean.toFixed(1);
    }
    root.append(list, button("Back", "cp-secondary", () => intro()));
  }

  async function trial(value) {
    if (value.key) remember(KEY, value.key);
    remember(OPEN, value.method);
    const mushra = value.method === "mushra";
    root.replaceChildren();
    const head = make("div", "cp-progress"), fill = make("i");
    fill.style.width = `${100 * value.index / value.total}%`;
    head.append(fill);
    root.append(make("p", "cp-hint", `${value.index + 1} of ${value.total}`), head);
    root.append(make("h3", "", mushra ? "How close is each version to the reference?" : "How good does this sound?"));
    const heard = {}, scores = {}, rows = []; // heard: seconds by name
    let clock = null; // when time was last counted, while something plays
    const names = [...(mushra ? ["Reference"] : []), ...value.stimuli.map(stimulus => stimulus.id)];
    const player = new Player(() => {
      controls.show();
      rows.forEach((row, i) => { row.classList.toggle("cp-on", i === player.chosen && player.buffers.length > 0); });
      const now = context().currentTime, name = names[player.chosen];
      if (clock !== null) heard[name] = (heard[name] ?? 0) + now - clock;
      clock = player.sources ? now : null;
      update();
    });
    root.cpPlayer = player;
    const controls = bar(player);
    const next = button(value.index + 1 === value.total ? "Save and finish" : "Save and go on", "cp-primary cp-next", () => {
      next.disabled = true;
      player.stop();
      trigger("rated", { session: value.session, index: value.index, scores });
      setTimeout(update, 5000); // a refusal is shown as a message, and leaves the page as it is
    });
    const missing = make("p", "cp-hint cp-missing");
    missing.setAttribute("role", "status");
    function update() {
      const seconds = id => (heard[id] ?? 0) + 0.05;
      const unheard = value.stimuli.filter(({ id }) => seconds(id) < value.least_seconds).length;
      const whole = names.some(name => seconds(name) >= value.full_seconds);
      rows.forEach((row, i) => row.classList.toggle("cp-heard", seconds(names[i]) >= value.least_seconds));
      const unrated = value.stimuli.filter(({ id }) => scores[id] === undefined).length;
      next.disabled = unheard + unrated > 0 || !whole;
      const todo = [];
      if (unheard) todo.push(mushra ? `listen to ${unheard}` : "listen");
      if (!unheard && !whole) todo.push(mushra ? "hear one of them to its end" : "hear it to its end");
      if (unrated) todo.push(mushra ? `rate ${unrated}` : "rate");
      const text = todo.length ? `Still to do: ${todo.join(", ")}.` : "";
      if (missing.textContent !== text) missing.textContent = text; // a change is read out
    }
    root.append(controls.root);
    const list = make("div", mushra ? "cp-mushra" : "cp-acr");
    const listen = i => { player.choose(i); player.play(); };
    if (mushra) {
      const scale = make("div", "cp-scale");
      for (const word of [...WORDS].reverse()) scale.append(make("span", "", word));
      list.append(scale);
    }
    names.forEach((name, i) => {
      const row = make("div", "cp-stimulus");
      row.append(button(mushra ? name : "Listen", "cp-pick", () => listen(i)));
      if (mushra && i === 0) row.classList.add("cp-reference");
      else if (mushra) {
        const slider = Object.assign(make("input", "cp-slider"), { type: "range", min: 0, max: 100, step: 1, value: 50 });
        const number = make("output", "", "–");
        slider.setAttribute("aria-label", `Score of ${name}`);
        slider.setAttribute("aria-valuetext", "not rated");
        const say = () => slider.setAttribute("aria-valuetext", `${slider.value}, ${WORDS[Math.min(4, Math.floor(slider.value / 20))]}`);
        // Only what is heard is rated: who takes hold of another slider hears that one.
        slider.onpointerdown = () => { if (player.chosen !== i || !player.sources) listen(i); };
        slider.oninput = () => { if (player.chosen !== i) listen(i); scores[name] = Number(slider.value); number.textContent = slider.value; say(); row.classList.add("cp-rated"); update(); };
        slider.onpointerup = slider.oninput; // a press that leaves it in the middle is a rating too
        row.append(slider, number);
      } else {
        const words = make("div", "cp-words");
        WORDS.forEach((word, k) => {
          const choice = button(word, "cp-word", () => {
            scores[name] = k + 1;
            for (const other of words.children) other.setAttribute("aria-pressed", other === choice);
            update();
          });
          choice.dataset.score = k + 1;
          words.append(choice);
        });
        row.append(words);
      }
      rows.push(row);
      list.append(row);
    });
    const foot = make("div", "cp-foot");
    foot.append(missing, next);
    root.append(list, foot);
    update();
    try {
      await player.load([...(mushra ? [value.reference] : []), ...value.stimuli.map(stimulus => stimulus.url)]);
      player.setLoop(mushra);
      player.choose(0);
      root.dataset.ready = `${value.session} ${value.index}`;
    } catch (error) { intro(error.message); }
  }

  const show = () => {
    root.cpPlayer?.stop();
    const value = props.value;
    delete root.dataset.ready;
    if (value?.stage === "trial") trial(value);
    else if (value?.stage === "done") done(value);
    else intro(value?.note);
  };
  watch("value", show);
  show();
};
