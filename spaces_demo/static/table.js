// A table that a press on a head sorts; cells are numbers with their interval, or text.
window.codecplus.table = (element, props, watch) => {
  const { make } = window.codecplus;
  const root = element.querySelector(".cp-root");
  const show = (x, digits) => (x === null || x === undefined ? "–" : typeof x === "string" ? x : x.toFixed(digits).replace(/^-(?=[0.]*$)/, "").replace("-", "−"));
  // All numbers of a column have as many decimals as its largest needs for three digits.
  const decimals = values => {
    const known = values.filter(value => typeof value === "number"), largest = Math.max(0, ...known.map(Math.abs));
    return known.every(Number.isInteger) ? 0 : largest <= 1 ? 3 : largest < 10 ? 2 : largest < 1000 ? 1 : 0;
  };
  let by = null, down = false;

  function draw() {
    root.replaceChildren();
    const columns = props.value?.columns ?? [], rows = [...(props.value?.rows ?? [])];
    if (!rows.length) return;
    if (by !== null && by < columns.length) rows.sort((a, b) => {
      const [x, y] = [a.cells[by].value, b.cells[by].value];
      if (x === null || y === null) return (x === null) - (y === null); // what is not there comes last
      return (x < y ? -1 : x > y ? 1 : 0) * (down ? -1 : 1);
    });
    const table = make("table", "cp-table cp-board"), head = table.createTHead().insertRow();
    columns.forEach((column, i) => {
      const cell = make("th"), press = Object.assign(make("button", "", column.title + (column.better ? `\u00a0${column.better}` : "")), { type: "button" });
      cell.scope = "col";
      if (column.about) cell.title = column.about;
      if (i === by) cell.setAttribute("aria-sort", down ? "descending" : "ascending");
      press.onclick = () => {
        // The first press shows the best first.
        down = by === i ? !down : column.better === "↑";
        by = i;
        draw();
      };
      cell.append(press);
      head.append(cell);
    });
    const body = table.createTBody(), digits = columns.map((_, i) => decimals(rows.map(({ cells }) => cells[i].value)));
    let group;
    for (const { cells, anchor, group: mine } of rows) {
      if (by === null && mine && mine !== group) { // ranks are within a group; sorted by something else there are none
        const line = make("th");
        line.colSpan = columns.length;
        line.scope = "rowgroup";
        line.append(make("span", "", group = mine));
        const heading = body.insertRow();
        heading.className = "cp-group";
        heading.append(line);
      }
      const row = body.insertRow();
      if (anchor) row.className = "cp-anchor";
      cells.forEach(({ value, low, high }, i) => {
        const cell = row.insertCell();
        cell.textContent = show(value, digits[i]);
        if (low !== null && low !== undefined) cell.append(make("small", "", `${show(low, digits[i])} to ${show(high, digits[i])}`));
      });
    }
    const scroll = make("div", "cp-scroll");
    scroll.append(table);
    root.append(scroll);
  }
  watch("value", draw);
  draw();
};
