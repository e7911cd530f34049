// A list of tracks, one under the other, with their pictures and the codes below; a press on a
// picture listens to it from there.
(() => {
  const { HeardTimes, Player, bar, make, makeButton, pictures } = window.codecplus;
  const LEAST_SECONDS = 1; // of listening to each of a blind pair before a vote

  function shareLine(link) {
    const { links } = window.codecplus;
    const root = make("div", "cp-share");
    const address = () => links.address({ dacp: link });
    const letters = link.length.toLocaleString("en");
    root.append(
      links.copyButton("Copy a link to this sound", address),
      links.qrButton(address),
      make("small", "", `The link holds the coded file, ${letters} characters: no server keeps it.`),
    );
    return root;
  }

  // A row without sound of its own: a name, a word on it, and a picture.
  function pictureRow(title, note, picture, below) {
    const row = make("div", "cp-track cp-silent");
    const name = make("div", "cp-name");
    name.append(make("b", "", title), make("small", "", note));
    const place = make("div", "cp-place");
    place.append(picture.root);
    if (below) place.append(below.root);
    row.append(name, place);
    return row;
  }

  window.codecplus.tracks = (element, props, watch) => {
    const root = element.querySelector(".cp-root");
    let generation = 0;

    function trackRow(track, i, player) {
      const row = make("div", "cp-track");
      const pick = makeButton("", "cp-pick", () => {
        player.choose(i);
        player.play();
      });
      pick.append(make("b", "", track.label), make("small", "", track.note ?? ""));
      const onpress = share => player.listenFrom(i, share);
      let picture;
      if (track.picture) {
        const alt = `Mel spectrogram of “${track.label}”, with a frequency axis in kHz`;
        picture = pictures.spectrogram({ ticks: track.ticks, alt, onpress });
        picture.show(track.picture);
      } else {
        picture = pictures.wave({ onpress });
      }
      const place = make("div", "cp-place");
      place.append(picture.root);
      row.append(pick, place);
      return { row, pick, picture, isDrawn: Boolean(track.picture) };
    }

    function build() {
      const value = props.value;
      const mine = ++generation;
      root.cpPlayer?.stop();
      root.replaceChildren();
      if (!value?.tracks?.length) {
        root.append(make("p", "cp-empty", value?.empty ?? "Nothing to hear yet."));
        return;
      }
      const names = value.tracks.map((_, i) => i);
      const silent = []; // pictures that only follow
      let rows = [];
      let numbers = null;

      // Blind: whoever votes has heard at least a second of all but the reference.
      function unlock() {
        const missing = names.some(i => {
          const least = Math.min(LEAST_SECONDS, 0.9 * player.duration);
          return i > 0 && !heard.atLeast(i, least);
        });
        const isOpen = !value.blind || (player.duration > 0 && !missing);
        document.getElementById(value.unlocks)?.toggleAttribute("inert", !isOpen);
        if (isOpen) root.dataset.heard = "true";
        else delete root.dataset.heard;
      }

      function show() {
        controls.show();
        heard.count();
        unlock();
        rows.forEach((entry, i) => {
          const buffer = player.buffers[i];
          entry.row.classList.toggle("cp-on", i === player.chosen);
          entry.row.classList.toggle("cp-loading", !buffer);
          entry.pick.setAttribute("aria-pressed", i === player.chosen);
          entry.picture.place(player.share);
          if (buffer && !entry.isDrawn && !value.blind) {
            entry.isDrawn = true;
            entry.picture.draw(buffer);
          }
        });
        for (const picture of silent) picture.place(player.share);
        numbers?.show(player.share);
      }

      const player = new Player(show);
      const heard = new HeardTimes(player, names);
      root.cpPlayer = player;
      const controls = bar(player);
      root.append(controls.root);
      rows = value.tracks.map((track, i) => trackRow(track, i, player));
      root.append(...rows.map(({ row }) => row));
      const follow = share => player.listenFrom(player.chosen, share);

      if (value.codes) {
        const picture = pictures.codes({ ...value.codes, onpress: follow });
        numbers = pictures.numbersNow(picture);
        silent.push(picture);
        root.append(pictureRow("The codes", value.codes.note, picture, numbers));
      }
      if (value.change) {
        const alt = "Difference of the levels, decoded minus original: red is more, blue is less";
        const picture = pictures.spectrogram({ ticks: value.change.ticks, alt, onpress: follow });
        picture.show(value.change.picture);
        silent.push(picture);
        root.append(pictureRow("What changed", "red came, blue went", picture));
      }
      if (value.seconds) {
        const axis = make("div", "cp-track cp-silent cp-bare");
        axis.append(make("div"), pictures.timeAxis(value.seconds));
        root.append(axis);
      }
      root.classList.toggle("cp-blind", Boolean(value.blind));
      const hints = ["Press a name to switch: the position stays. Keys 1 to 9 switch, space plays."];
      if (value.blind) hints.push("There are no waveforms: they would tell which is which.");
      root.append(make("p", "cp-hint", hints.join(" ")));
      if (value.link) root.append(shareLine(value.link));

      root.tabIndex = 0;
      root.setAttribute("role", "group");
      root.setAttribute("aria-label", "Player: keys 1 to 9 switch, space plays");
      root.onkeydown = event => {
        const number = Number(event.key);
        if (number >= 1 && number <= rows.length) {
          player.choose(number - 1);
          event.preventDefault();
        } else if (event.key === " " && event.target === root) {
          player.toggle();
          event.preventDefault();
        }
      };

      const first = Math.min(value.chosen ?? 0, rows.length - 1);
      const paths = value.tracks.map(track => track.url);
      player.load(paths, first).then(
        () => {
          if (mine === generation) root.dataset.ready = "true";
        },
        error => {
          if (mine === generation) root.replaceChildren(make("p", "cp-empty", error.message));
        },
      );
    }

    watch("value", () => {
      delete root.dataset.ready;
      build();
    });
    build();
  };
})();
