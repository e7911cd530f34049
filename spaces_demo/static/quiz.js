// Five blind rounds: which of the two is the original? Then a result with a link for friends.
window.codecplus.quiz = (element, props, watch, trigger) => {
  const { Player, bar, context, links, make, turnPage } = window.codecplus;
  const root = element.querySelector(".cp-root");
  const button = (text, className, onclick) => Object.assign(make("button", className, text), { type: "button", onclick });
  let player = null;

  function beginButton(text) {
    return button(text, "cp-primary", event => {
      event.target.disabled = true;
      trigger("begin", {});
      setTimeout(() => { event.target.disabled = false; }, 10000);
    });
  }

  function intro() {
    const friends = Number(links.wish().get("right"));
    const says = links.wish().get("tab") === "quiz" && links.wish().has("right");
    const title = says && friends >= 0 && friends <= 5 ? `A friend found ${friends} of 5. Can you?` : "Can you hear it?";
    turnPage(
      root,
      make("h2", "", title),
      make("p", "", "Five rounds. You hear a recording twice: once as it is, once out of the codec, at rates that rise and fall. Say which is the original. Who guesses finds half."),
      beginButton("Begin"),
      make("p", "cp-hint", "Use headphones. Your answers are counted; nothing else is kept of you."),
    );
  }

  async function round(value) {
    const heard = { A: 0, B: 0 };
    let clock = null; // when time was last counted, while something plays
    const picks = [];
    const votes = [];
    player = new Player(() => {
      controls.show();
      const now = context().currentTime;
      if (clock !== null) heard[value.sounds[player.audible].id] += now - clock;
      clock = player.sources ? now : null;
      picks.forEach((pick, i) => {
        pick.setAttribute("aria-pressed", i === player.chosen);
        pick.classList.toggle("cp-loading", !player.buffers[i]);
      });
      unlock();
    });
    root.cpPlayer = player;
    const controls = bar(player);
    const words = make("div", "cp-words");
    value.sounds.forEach(({ id }, i) => {
      const pick = button(`Hear ${id}`, "cp-word", () => { player.choose(i); player.play(); });
      picks.push(pick);
      words.append(pick);
    });
    const answers = make("div", "cp-words");
    for (const { id } of value.sounds) {
      const vote = button(`${id} is the original`, "cp-primary", () => {
        for (const other of votes) other.disabled = true;
        player.stop();
        trigger("voted", { session: value.session, index: value.index, letter: id });
        setTimeout(unlock, 5000); // a refusal is shown as a message, and leaves the page as it is
      });
      vote.dataset.letter = id;
      votes.push(vote);
      answers.append(vote);
    }
    const missing = make("p", "cp-hint");
    missing.setAttribute("role", "status");
    function unlock() {
      const unheard = value.sounds.filter(({ id }) => heard[id] + 0.05 < value.least_seconds);
      for (const vote of votes) vote.disabled = unheard.length > 0;
      const text = unheard.length ? `Still to hear: ${unheard.map(({ id }) => id).join(" and ")}.` : "";
      if (missing.textContent !== text) missing.textContent = text;
    }
    turnPage(
      root,
      make("p", "cp-hint", `Round ${value.index + 1} of ${value.total}: ${value.recording}`),
      make("h2", "", "Which one is the original?"),
      controls.root, words, answers, missing,
    );
    unlock();
    try {
      await player.load(value.sounds.map(sound => sound.url));
      player.setLoop(true);
      root.dataset.ready = `${value.index}`;
    } catch (error) {
      root.replaceChildren(make("p", "cp-empty", error.message), beginButton("Begin again"));
    }
  }

  function result(value) {
    const card = make("div", "cp-card cp-result");
    card.append(make("h2", "", `You found the original in ${value.right} of ${value.total}`));
    card.append(make("p", "", value.right >= 5 ? "You can hear it." : value.right >= 4 ? "Sharp ears." : "Guessing finds two or three: to you they sound much alike."));
    const table = make("table", "cp-table");
    const head = table.createTHead().insertRow();
    for (const title of ["Version", "You", "Everybody so far"]) {
      const cell = make("th", "", title);
      cell.scope = "col";
      head.append(cell);
    }
    const body = table.createTBody();
    for (const one of value.rounds) {
      const row = body.insertRow();
      row.insertCell().textContent = one.version;
      row.insertCell().textContent = one.right ? "found it" : "took it for the original";
      row.insertCell().textContent = `${one.others_right} of ${one.others} found it`;
    }
    const foot = make("div", "cp-words");
    const link = () => links.address({ tab: "quiz", right: value.right });
    foot.append(links.copyButton("Copy a link for friends", link), beginButton("Once more"));
    card.append(table, foot);
    turnPage(root, card);
  }

  const show = () => {
    player?.stop();
    delete root.dataset.ready;
    const value = props.value;
    if (value?.stage === "round") round(value);
    else if (value?.stage === "result") result(value);
    else intro();
  };
  watch("value", show);
  show();
};
