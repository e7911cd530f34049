// Recordings with what codecs make of them, computed beforehand: the first tap plays.
window.codecplus.showcase = (element, props) => {
  const { Player, bar, links, make } = window.codecplus;
  const root = element.querySelector(".cp-root");
  const isOurs = version => version.name.startsWith("codecplus-");
  const bytes = count => (count < 1000 ? `${count} bytes` : `${(count / 1000).toPrecision(3)} kB`);
  let player = null;

  function words(label, entries, onchoose) {
    const group = make("div", "cp-words");
    group.setAttribute("role", "group");
    group.setAttribute("aria-label", label);
    for (const { name, title, note } of entries) {
      const choice = Object.assign(make("button", "cp-word"), { type: "button" });
      choice.dataset.name = name;
      choice.append(make("b", "", title));
      const small = make("small", "", note ?? "");
      choice.append(small);
      choice.onclick = () => onchoose(name);
      group.append(choice);
    }
    group.show = (name, loading) => {
      for (const choice of group.children) {
        choice.setAttribute("aria-pressed", choice.dataset.name === name);
        choice.classList.toggle("cp-loading", choice.dataset.name === name && loading);
      }
    };
    return group;
  }

  function build(clip, versionName) {
    player?.stop();
    root.replaceChildren();
    delete root.dataset.playable;
    delete root.dataset.ready;
    const versions = clip.versions;
    const indexOf = name => versions.findIndex(version => version.name === name);
    const first = indexOf(versionName) >= 0 ? indexOf(versionName) : indexOf(clip.chosen);
    const steps = versions.filter(isOurs).map(version => version.name);
    let step = Math.max(0, steps.indexOf(isOurs(versions[first]) ? versions[first].name : clip.chosen));

    const clips = words("Recording", props.value.clips, name => build(props.value.clips.find(other => other.name === name)));
    clips.show(clip.name, false);
    const entries = [{ name: "codecplus", title: "codecplus", note: "" }];
    for (const version of versions.filter(version => !isOurs(version))) {
      entries.push({ name: version.name, title: version.label, note: `${bytes(version.bytes)}, ${version.kbps.toFixed(version.kbps < 100 ? 1 : 0)} kbit/s` });
    }
    // The original comes first, as people expect.
    entries.sort((a, b) => (b.name === "original") - (a.name === "original"));

    player = new Player(() => show());
    root.cpPlayer = player;
    const controls = bar(player);
    const listen = index => {
      player.choose(index);
      player.play();
      links.remember({ tab: "hear", clip: clip.name, version: versions[index].name });
    };
    const choices = words("Version", entries, name => listen(indexOf(name === "codecplus" ? steps[step] : name)));

    const rate = make("label", "cp-rate");
    const slider = Object.assign(make("input", "cp-seek"), { type: "range", min: 0, max: steps.length - 1, step: 1, value: step });
    slider.setAttribute("aria-label", "Rate of codecplus");
    const said = make("output", "");
    rate.append(make("span", "", "Rate of codecplus, also while it plays"), slider, said);
    slider.oninput = () => {
      step = Number(slider.value);
      listen(indexOf(steps[step]));
    };

    function show() {
      controls.show();
      const chosen = versions[player.chosen];
      const ours = versions[indexOf(steps[step])];
      const text = `${ours.kbps.toFixed(2)} kbit/s`;
      said.textContent = `${text}: ${bytes(ours.bytes)} for ${clip.seconds.toFixed(1)} s, ${Math.round(versions[indexOf("original")].bytes / ours.bytes)} times smaller than the original`;
      slider.setAttribute("aria-valuetext", text);
      choices.querySelector("[data-name=codecplus] small").textContent = `${bytes(ours.bytes)}, ${text}`;
      choices.show(isOurs(chosen) ? "codecplus" : chosen.name, !player.buffers[player.chosen]);
      if (player.buffers[player.chosen]) root.dataset.playable = "true";
    }

    const credit = make("p", "cp-hint", `${clip.credit}. Licence: ${clip.licence}; cut, mixed to one channel and levelled. `);
    const source = Object.assign(make("a", "", "Source"), { href: clip.url, target: "_blank", rel: "noopener" });
    credit.append(source);
    const copy = links.copyButton("Copy a link to this", () => links.address({ tab: "hear", clip: clip.name, version: versions[player.chosen].name }));
    root.append(clips, controls.root, choices, rate, copy, credit);

    const paths = versions.map(version => `clips/${version.file}`);
    const loaded = player.load(paths, first);
    show();
    loaded.then(
      () => { root.dataset.ready = "true"; },
      error => root.replaceChildren(make("p", "cp-empty", error.message)),
    );
  }

  const wish = links.wish();
  const clip = props.value.clips.find(other => other.name === wish.get("clip"));
  build(clip ?? props.value.clips[0], wish.get("version"));
};
