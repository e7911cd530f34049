// Recordings with what codecs make of them, computed beforehand: the first tap plays.
// On a slow line Gradio takes ten seconds. Until then the recordings stand in a place of their own, #early, and what
// was made there, playing or not, moves into the tab.
window.codecplus.early = () => {
  const { links, showcase } = window.codecplus;
  const place = document.getElementById("early");
  const tab = links.wish().get("tab") ?? (links.wish().has("dacp") ? "try" : "hear");
  if (tab !== "hear") return; // another tab was asked for
  window.codecplus.arrived = new Promise(resolve => { window.codecplus.arrive = resolve; });
  const value = JSON.parse(document.getElementById("showcase-value").textContent);
  showcase(place, { value });
};

window.codecplus.showcase = (element, props) => {
  const place = document.getElementById("early");
  if (place && place !== element) {
    const focused = document.activeElement;
    const made = place.querySelector(".cp-root");
    if (made.cpPlayer) element.querySelector(".cp-root").replaceWith(made);
    place.remove();
    if (made.contains(focused)) focused.focus();
    window.codecplus.arrive?.();
    if (made.cpPlayer) return;
  }
  const { Player, bar, links, make, makeButton, pictures } = window.codecplus;
  const root = element.querySelector(".cp-root");
  const isOurs = version => version.name.startsWith("codecplus-");
  let player = null;

  function bytes(count) {
    if (count < 1000) return `${count} bytes`;
    return `${(count / 1000).toPrecision(3)} kB`;
  }

  function rateText(version) {
    const digits = version.kbps < 10 ? 2 : 0;
    return `${version.kbps.toFixed(digits)} kbit/s`;
  }

  // A group of buttons of which one is pressed.
  function choices(label, entries, onchoose) {
    const group = make("div", "cp-words");
    group.setAttribute("role", "group");
    group.setAttribute("aria-label", label);
    const notes = {};
    for (const { name, title, note, share } of entries) {
      const choice = makeButton("", "cp-word", () => onchoose(name));
      choice.dataset.name = name;
      notes[name] = make("small", "", note ?? "");
      choice.append(make("b", "", title), notes[name]);
      if (share !== undefined) {
        const size = make("i", "cp-bytes"); // as wide as the file is large
        size.style.width = `${100 * share}%`;
        choice.append(size);
      }
      group.append(choice);
    }
    const show = (name, isLoading) => {
      for (const choice of group.children) {
        const isChosen = choice.dataset.name === name;
        choice.setAttribute("aria-pressed", isChosen);
        choice.classList.toggle("cp-loading", isChosen && isLoading);
      }
    };
    return { root: group, notes, show };
  }

  function creditLine(clip) {
    const changes = "cut, mixed to one channel and levelled";
    const line = make("p", "cp-hint", `${clip.credit}. Licence: ${clip.licence}; ${changes}. `);
    const source = make("a", "", "Source");
    Object.assign(source, { href: clip.url, target: "_blank", rel: "noopener" });
    line.append(source);
    return line;
  }

  function build(clip, versionName) {
    player?.stop();
    root.replaceChildren();
    delete root.dataset.playable;
    delete root.dataset.ready;
    const { versions } = clip;
    const indexOf = name => versions.findIndex(version => version.name === name);
    const original = versions[indexOf("original")];
    const steps = versions.filter(isOurs);
    let first = indexOf(versionName);
    if (first < 0) first = indexOf(clip.chosen);
    const firstStep = isOurs(versions[first]) ? versions[first].name : clip.chosen;
    let step = steps.findIndex(version => version.name === firstStep);

    const clips = choices("Recording", props.value.clips, name => {
      build(props.value.clips.find(other => other.name === name));
    });
    clips.show(clip.name, false);

    // The original comes first, as people expect, then ours.
    const entries = [];
    for (const version of [original, steps[step], ...versions.filter(one => !isOurs(one))]) {
      const name = isOurs(version) ? "codecplus" : version.name;
      if (entries.some(entry => entry.name === name)) continue;
      const note = `${bytes(version.bytes)}, ${rateText(version)}`;
      entries.push({ name, title: version.label, note, share: version.bytes / original.bytes });
    }
    const listen = index => {
      player.choose(index);
      player.play();
      links.remember({ tab: "hear", clip: clip.name, version: versions[index].name });
    };
    const listed = choices("Version", entries, name => {
      listen(indexOf(name === "codecplus" ? steps[step].name : name));
    });

    player = new Player(() => show());
    root.cpPlayer = player;
    const controls = bar(player);
    const follow = share => player.listenFrom(player.chosen, share);

    const stage = make("div", "cp-stage");
    const heading = make("p", "cp-heading");
    const spectrogram = pictures.spectrogram({ ticks: clip.ticks, alt: "", onpress: follow });
    const codes = pictures.codes({ ...clip.codes, onpress: follow });
    const numbers = pictures.numbersNow(codes);
    const about = make("p", "cp-about");
    stage.append(
      heading,
      spectrogram.root,
      pictures.timeAxis(clip.seconds),
      about,
      codes.root,
      numbers.root,
    );

    const rate = make("label", "cp-rate");
    const slider = make("input", "cp-seek");
    Object.assign(slider, { type: "range", min: 0, max: steps.length - 1, step: 1, value: step });
    slider.setAttribute("aria-label", "Rate of codecplus");
    const said = make("output", "");
    const title = "Turn it down until it falls apart, also while it plays";
    rate.append(make("span", "", title), slider, said);
    slider.oninput = () => {
      step = Number(slider.value);
      listen(indexOf(steps[step].name));
    };

    function show() {
      controls.show();
      const chosen = versions[player.chosen];
      const ours = steps[step];
      const times = Math.round(original.bytes / chosen.bytes);
      heading.replaceChildren(make("b", "", `${chosen.label}: ${bytes(chosen.bytes)}`));
      if (times > 1) heading.append(` for ${clip.seconds.toFixed(0)} s, ${times} times smaller`);
      spectrogram.show(
        `clips/${chosen.picture}`,
        `Mel spectrogram of ${chosen.label} at ${rateText(chosen)}, frequency axis in kHz`,
      );
      const count = ours.books === 1 ? "1 number" : `${ours.books} numbers`;
      const often = Math.round(clip.codes.frames / clip.seconds);
      about.textContent = `All that codecplus sends: ${count}, ${often} times a second`;
      codes.use(ours.books);
      codes.root.classList.toggle("cp-aside", !isOurs(chosen));
      spectrogram.place(player.share);
      codes.place(player.share);
      numbers.show(player.share);
      said.textContent = `${rateText(ours)}, ${bytes(ours.bytes)}`;
      slider.setAttribute("aria-valuetext", rateText(ours));
      listed.notes.codecplus.textContent = `${bytes(ours.bytes)}, ${rateText(ours)}`;
      const isLoading = !player.buffers[player.chosen];
      listed.show(isOurs(chosen) ? "codecplus" : chosen.name, isLoading);
      if (!isLoading) root.dataset.playable = "true";
    }

    const address = () => {
      const version = versions[player.chosen].name;
      return links.address({ tab: "hear", clip: clip.name, version });
    };
    const share = make("div", "cp-share");
    share.append(links.copyButton("Copy a link to this", address));
    root.append(
      clips.root,
      controls.root,
      listed.root,
      stage,
      rate,
      share,
      creditLine(clip),
    );

    const paths = versions.map(version => `clips/${version.file}`);
    // Before Gradio is there, its scripts need the line.
    const loaded = player.load(paths, first, window.codecplus.arrived);
    show();
    loaded.then(
      () => {
        root.dataset.ready = "true";
      },
      error => root.replaceChildren(make("p", "cp-empty", error.message)),
    );
  }

  const wish = links.wish();
  const clip = props.value.clips.find(other => other.name === wish.get("clip"));
  build(clip ?? props.value.clips[0], wish.get("version"));
};
