// Links to a tab, a recording or a setting: they are written behind the #, which no server sees.
(() => {
  const { make, makeButton, makeStatus, url } = window.codecplus;

  const wish = () => new URLSearchParams(location.hash.slice(1));
  const address = fields => `${location.href.split("#")[0]}#${new URLSearchParams(fields)}`;
  const remember = fields => history.replaceState(null, "", address(fields));

  function copyButton(text, makeAddress) {
    const button = makeButton(text, "cp-secondary");
    button.onclick = async () => {
      const link = makeAddress();
      try {
        await navigator.clipboard.writeText(link);
        button.textContent = "Copied";
      } catch {
        window.prompt("Copy this link:", link); // no clipboard without https
      }
      setTimeout(() => { button.textContent = text; }, 2000);
    };
    return button;
  }

  // A button that shows a link as a QR code, for the telephone beside the screen.
  function qrButton(makeAddress) {
    const root = make("div", "cp-qr");
    const said = makeStatus("cp-hint", "");
    const image = make("img");
    image.alt = "QR code of the link to this sound";
    image.hidden = true;
    const button = makeButton("Show as QR code", "cp-secondary");
    button.setAttribute("aria-expanded", "false");
    button.onclick = async () => {
      if (!image.hidden) {
        image.hidden = true;
        button.setAttribute("aria-expanded", "false");
        return;
      }
      const answer = await fetch(url("qr"), { method: "POST", body: makeAddress() });
      if (!answer.ok) {
        said.textContent = await answer.text();
        return;
      }
      URL.revokeObjectURL(image.src);
      image.src = URL.createObjectURL(await answer.blob());
      image.hidden = false;
      button.setAttribute("aria-expanded", "true");
    };
    root.append(button, image, said);
    return root;
  }

  const tabButton = name => document.querySelector(`#tab-${CSS.escape(name)}-button`);

  function openTab(name) {
    const button = tabButton(name);
    if (button && button.getAttribute("aria-selected") !== "true") button.click();
    return Boolean(button);
  }

  // Set a Gradio control that a link names; its own events then run as after a visitor's hand.
  function setControls(fields) {
    const radios = { clip: "clip", checkpoint: "checkpoint" };
    for (const [field, id] of Object.entries(radios)) {
      const value = fields.get(field);
      if (value === null) continue;
      document.querySelector(`#${id} input[value="${CSS.escape(value)}"]`)?.click();
    }
  }

  function follow() {
    const fields = wish();
    const name = fields.has("dacp") ? "try" : fields.get("tab");
    if (!name || !openTab(name)) return Boolean(!name);
    if (name === "try") setTimeout(() => setControls(fields), 300);
    return true;
  }

  // A sound that came in the link: the server decodes it, once for each link.
  function receive(trigger) {
    let last = null;
    const look = () => {
      const sound = wish().get("dacp");
      if (!sound || sound === last) return;
      last = sound;
      trigger("received", { sound });
    };
    window.addEventListener("hashchange", look);
    look();
  }

  // The tabs are not there yet when this script is read; on a slow line they take a while.
  function start(tries) {
    if (!tabButton("hear")) {
      if (tries > 0) setTimeout(() => start(tries - 1), 100);
      return;
    }
    follow();
    for (const button of document.querySelectorAll("[role=tab][id^=tab-]")) {
      button.addEventListener("click", event => {
        const name = button.id.slice("tab-".length, -"-button".length);
        if (event.isTrusted && wish().get("tab") !== name) remember({ tab: name });
      });
    }
    window.addEventListener("hashchange", follow);
  }

  Object.assign(window.codecplus, {
    links: { wish, address, remember, copyButton, qrButton, openTab, receive },
  });
  start(1200);
})();
