// The listening test: an introduction, the volume, training, one trial after the other, and thanks.
window.codecplus.listening = (element, props, watch, trigger) => {
  const { HeardTimes, Player, bar, context, make, makeButton, makeStatus, say, turnPage } =
    window.codecplus;
  const root = element.querySelector(".cp-root");
  // The key is a secret between this browser and the server: ratings carry only a hash of it.
  const KEY = "codecplus-listener";
  const OPEN = "codecplus-listening-open";
  const WORDS = ["Bad", "Poor", "Fair", "Good", "Excellent"];
  const TRAINING_SECONDS = 1; // of each sound, or all of a shorter one
  const METHODS = {
    mushra: {
      title: "Compare with a reference",
      about:
        "MUSHRA, ITU-R BS.1534: several versions of one clip, each rated from 0 to 100 against the " +
        "original. The original is hidden among them. About five minutes.",
      question: "How close is each version to the reference?",
      highest: 100,
    },
    acr: {
      title: "Rate one at a time",
      about:
        "ACR, ITU-T P.800: one clip after the other, each rated from bad to excellent, without a " +
        "reference. About five minutes.",
      question: "How good does this sound?",
      highest: 5,
    },
  };

  // ---- what the browser remembers

  function remembered(name) {
    try {
      return localStorage.getItem(name);
    } catch {
      return null; // a private window
    }
  }

  function remember(name, value) {
    try {
      if (value) localStorage.setItem(name, value);
      else localStorage.removeItem(name);
    } catch {
      // a private window
    }
  }

  function begin(method) {
    trigger("begin", { method, key: remembered(KEY) });
  }

  // ---- before the first trial

  function methodCard(method) {
    const { title, about } = METHODS[method];
    const isOpen = remembered(OPEN) === method;
    const card = make("div", "cp-card");
    card.dataset.method = method;
    const label = isOpen ? "Go on" : "Begin";
    const button = makeButton(label, "cp-primary", () => {
      button.disabled = true;
      button.textContent = "One moment…";
      if (isOpen) begin(method); // who was trained before the break goes on
      else trigger("train", { method });
      setTimeout(() => {
        button.disabled = false;
        button.textContent = label;
      }, 20000);
    });
    card.append(make("h2", "", title), make("p", "", about), button);
    return card;
  }

  function intro(note) {
    const cards = make("div", "cp-choose");
    cards.append(...Object.keys(METHODS).map(methodCard));
    const hint =
      "Use headphones, in a quiet room. Ratings are kept under a random number; nothing else is " +
      "known of you. Your browser remembers a key, so that you can go on after a break.";
    const parts = [cards, make("p", "cp-hint", hint)];
    if (note) parts.unshift(make("p", "cp-empty", note));
    turnPage(root, ...parts);
  }

  function wasHeard(heard, name) {
    const { duration } = heard.player;
    return duration > 0 && heard.atLeast(name, Math.min(TRAINING_SECONDS, 0.9 * duration));
  }

  // A beep far below speech: who cannot hear it listens too softly, or in too much noise.
  function beep() {
    const node = context().createOscillator();
    const gain = context().createGain();
    gain.gain.value = 0.004; // -48 dB; the recordings have about -23
    node.frequency.value = 1000;
    node.connect(gain).connect(context().destination);
    context().resume();
    node.start();
    node.stop(context().currentTime + 0.6);
  }

  async function volume(value) {
    delete root.dataset.ready;
    const player = new Player(() => {
      controls.show();
      heard.count();
      update();
    });
    const heard = new HeardTimes(player, ["reference"]);
    root.cpPlayer = player;
    const controls = bar(player);
    let beeped = false;
    const soft = makeButton("Play the soft beep", "cp-secondary", () => {
      beeped = true;
      beep();
      update();
    });
    const next = makeButton("The volume is right", "cp-primary cp-next", () => {
      player.stop();
      train(value);
    });
    const missing = makeStatus("cp-hint cp-missing", "");
    function update() {
      const isHeard = wasHeard(heard, "reference");
      next.disabled = !(isHeard && beeped);
      const todo = [];
      if (!isHeard) todo.push("play the clip");
      if (!beeped) todo.push("play the beep");
      say(missing, todo.length ? `Still to do: ${todo.join(", ")}.` : "");
    }
    const foot = make("div", "cp-foot");
    foot.append(missing, next);
    turnPage(
      root,
      make("p", "cp-hint", "Before you begin, 1 of 2"),
      make("h2", "", "Set the volume"),
      make("p", "", "Play this clip, and make it as loud as you like to listen."),
      controls.root,
      make("p", "", "Now you should just hear this beep. If you do not, turn the volume up."),
      soft,
      make("p", "cp-hint", "Then leave the volume alone until the end."),
      foot,
    );
    update();
    await load(player, [value.reference], "volume");
  }

  async function train(value) {
    delete root.dataset.ready;
    const isMushra = value.method === "mushra";
    const names = value.stimuli.map(({ id }) => id);
    const rows = [];
    const player = new Player(() => {
      controls.show();
      heard.count();
      update();
    });
    const heard = new HeardTimes(player, names);
    root.cpPlayer = player;
    const controls = bar(player);
    const list = make("div", "cp-words");
    names.forEach((name, i) => {
      const row = makeButton(`Version ${name}`, "cp-word", () => {
        player.choose(i);
        player.play();
      });
      rows.push(row);
      list.append(row);
    });
    const next = makeButton("Begin with the ratings", "cp-primary cp-next", () => {
      next.disabled = true;
      player.stop();
      begin(value.method);
      setTimeout(update, 20000);
    });
    const missing = makeStatus("cp-hint cp-missing", "");
    function update() {
      const unheard = names.filter(name => !wasHeard(heard, name)).length;
      rows.forEach((row, i) => {
        row.setAttribute("aria-pressed", i === player.chosen);
        row.classList.toggle("cp-heard", wasHeard(heard, names[i]));
      });
      next.disabled = unheard > 0;
      say(missing, unheard ? `Still to do: listen to ${unheard}.` : "");
    }
    const foot = make("div", "cp-foot");
    foot.append(missing, next);
    const scale = isMushra
      ? "Later you give each a number: 100 if it sounds like the original, 0 if it is bad."
      : "Later you give each one of five words, from bad to excellent.";
    turnPage(
      root,
      make("p", "cp-hint", "Before you begin, 2 of 2"),
      make("h2", "", "Hear what is to come"),
      make(
        "p",
        "",
        "Listen to all of these. They are one clip, from the best to the worst that you will hear, " +
          `in no order. Nothing is rated here. ${scale}`,
      ),
      controls.root,
      list,
      foot,
    );
    update();
    const urls = value.stimuli.map(stimulus => stimulus.url);
    if (await load(player, urls, "training")) player.setLoop(true);
  }

  // Load the sounds of a page, and mark it as ready; returns whether that worked.
  async function load(player, urls, mark) {
    try {
      await player.load(urls);
    } catch (error) {
      intro(error.message);
      return false;
    }
    player.choose(0);
    root.dataset.ready = mark;
    return true;
  }

  // ---- trials

  function numberScale(name, onrate) {
    const slider = make("input", "cp-slider");
    Object.assign(slider, { type: "range", min: 0, max: 100, step: 1, value: 50 });
    slider.setAttribute("aria-label", `Score of ${name}`);
    slider.setAttribute("aria-valuetext", "not rated");
    const number = make("output", "", "–");
    const rate = () => {
      const word = WORDS[Math.min(4, Math.floor(slider.value / 20))];
      slider.setAttribute("aria-valuetext", `${slider.value}, ${word}`);
      number.textContent = slider.value;
      onrate(Number(slider.value));
    };
    slider.oninput = rate;
    slider.onpointerup = rate; // a press that leaves it in the middle is a rating too
    return { slider, number };
  }

  function wordScale(onrate) {
    const words = make("div", "cp-words");
    WORDS.forEach((word, k) => {
      const choice = makeButton(word, "cp-word", () => {
        for (const other of words.children) other.setAttribute("aria-pressed", other === choice);
        onrate(k + 1);
      });
      choice.dataset.score = k + 1;
      choice.setAttribute("aria-pressed", false);
      words.append(choice);
    });
    return words;
  }

  async function trial(value) {
    if (value.key) remember(KEY, value.key);
    remember(OPEN, value.method);
    const isMushra = value.method === "mushra";
    const ids = value.stimuli.map(({ id }) => id);
    const names = isMushra ? ["Reference", ...ids] : ids;
    const scores = {};
    const rows = [];

    const player = new Player(() => {
      controls.show();
      heard.count();
      rows.forEach((row, i) => {
        row.classList.toggle("cp-on", i === player.chosen && player.buffers.length > 0);
      });
      update();
    });
    const heard = new HeardTimes(player, names);
    root.cpPlayer = player;
    const controls = bar(player);
    const listen = i => {
      player.choose(i);
      player.play();
    };
    const rate = (name, score) => {
      scores[name] = score;
      update();
    };

    const isLast = value.index + 1 === value.total;
    const next = makeButton(isLast ? "Save and finish" : "Save and go on", "cp-primary cp-next");
    next.onclick = () => {
      next.disabled = true;
      player.stop();
      trigger("rated", { session: value.session, index: value.index, scores });
      setTimeout(update, 5000); // a refusal is shown as a message, and leaves the page as it is
    };
    const missing = makeStatus("cp-hint cp-missing", "");

    function update() {
      const unheard = ids.filter(id => !heard.atLeast(id, value.least_seconds)).length;
      const isWhole = names.some(name => heard.atLeast(name, value.full_seconds));
      const unrated = ids.filter(id => scores[id] === undefined).length;
      rows.forEach((row, i) => {
        row.classList.toggle("cp-heard", heard.atLeast(names[i], value.least_seconds));
      });
      next.disabled = unheard + unrated > 0 || !isWhole;
      const todo = [];
      if (unheard) todo.push(isMushra ? `listen to ${unheard}` : "listen");
      else if (!isWhole) todo.push(isMushra ? "hear one of them to its end" : "hear it to its end");
      if (unrated) todo.push(isMushra ? `rate ${unrated}` : "rate");
      say(missing, todo.length ? `Still to do: ${todo.join(", ")}.` : "");
    }

    function stimulusRow(name, i) {
      const row = make("div", "cp-stimulus");
      row.append(makeButton(isMushra ? name : "Listen", "cp-pick", () => listen(i)));
      if (isMushra && i === 0) {
        row.classList.add("cp-reference");
      } else if (isMushra) {
        const { slider, number } = numberScale(name, score => {
          if (player.chosen !== i) listen(i);
          row.classList.add("cp-rated");
          rate(name, score);
        });
        // Only what is heard is rated: who takes hold of another slider hears that one.
        slider.onpointerdown = () => {
          if (player.chosen !== i || !player.sources) listen(i);
        };
        row.append(slider, number);
      } else {
        row.append(wordScale(score => rate(name, score)));
      }
      return row;
    }

    const list = make("div", isMushra ? "cp-mushra" : "cp-acr");
    if (isMushra) {
      const scale = make("div", "cp-scale");
      for (const word of [...WORDS].reverse()) scale.append(make("span", "", word));
      list.append(scale);
    }
    rows.push(...names.map(stimulusRow));
    list.append(...rows);

    const progress = make("div", "cp-progress");
    const fill = make("i");
    fill.style.width = `${(100 * value.index) / value.total}%`;
    progress.append(fill);
    const foot = make("div", "cp-foot");
    foot.append(missing, next);
    turnPage(
      root,
      make("p", "cp-hint", `${value.index + 1} of ${value.total}`),
      progress,
      make("h2", "", METHODS[value.method].question),
      controls.root,
      list,
      foot,
    );
    update();
    const urls = value.stimuli.map(stimulus => stimulus.url);
    if (isMushra) urls.unshift(value.reference);
    const isLoaded = await load(player, urls, `${value.session} ${value.index}`);
    if (isLoaded) player.setLoop(isMushra);
  }

  function done(value) {
    remember(OPEN, null);
    const list = make("table", "cp-table");
    for (const [name, mean] of value.given) {
      const row = list.insertRow();
      row.insertCell().textContent = name;
      const meter = make("i", "cp-meter");
      meter.style.width = `${(100 * mean) / METHODS[value.method].highest}%`;
      row.insertCell().append(meter);
      row.insertCell().textContent = mean.toFixed(1);
    }
    turnPage(
      root,
      make("h2", "", "Thank you: your ratings are saved"),
      make("p", "", "This is what was behind them, with your mean for each:"),
      list,
      makeButton("Back", "cp-secondary", () => intro()),
    );
  }

  function show() {
    root.cpPlayer?.stop();
    delete root.dataset.ready;
    const value = props.value;
    if (value?.stage === "training") volume(value);
    else if (value?.stage === "trial") trial(value);
    else if (value?.stage === "done") done(value);
    else intro(value?.note);
  }

  watch("value", show);
  show();
};
