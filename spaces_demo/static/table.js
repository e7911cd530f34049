// A table that a press on a head sorts; cells are numbers with their interval, or text.
window.codecplus.table = (element, props, watch) => {
  const { make, makeButton } = window.codecplus;
  const root = element.querySelector(".cp-root");
  let by = null; // index of the column that sorts
  let isDown = false;

  function text(value, digits) {
    if (value === null || value === undefined) return "–";
    if (typeof value === "string") return value;
    const number = value.toFixed(digits);
    const isZero = Number(number) === 0;
    return isZero ? number.replace("-", "") : number.replace("-", "−");
  }

  // All numbers of a column have as many decimals as its largest needs for three digits.
  function decimals(values) {
    const known = values.filter(value => typeof value === "number");
    if (known.every(Number.isInteger)) return 0;
    const largest = Math.max(0, ...known.map(Math.abs));
    if (largest <= 1) return 3;
    if (largest < 10) return 2;
    if (largest < 1000) return 1;
    return 0;
  }

  function compare(a, b) {
    const x = a.cells[by].value;
    const y = b.cells[by].value;
    if (x === null || y === null) return (x === null) - (y === null); // what is missing comes last
    const order = x < y ? -1 : Number(x > y);
    return isDown ? -order : order;
  }

  function headCell(column, i) {
    const cell = make("th");
    cell.scope = "col";
    if (column.about) cell.title = column.about;
    if (i === by) cell.setAttribute("aria-sort", isDown ? "descending" : "ascending");
    const arrow = column.better ? `\u00a0${column.better}` : "";
    const press = makeButton(column.title + arrow, "", () => {
      // The first press shows the best first.
      isDown = by === i ? !isDown : column.better === "↑";
      by = i;
      draw();
    });
    cell.append(press);
    return cell;
  }

  function groupRow(body, name, width) {
    const row = body.insertRow();
    row.className = "cp-group";
    const cell = make("th");
    cell.colSpan = width;
    cell.scope = "rowgroup";
    cell.append(make("span", "", name));
    row.append(cell);
  }

  function bodyRow(body, entry, digits) {
    const row = body.insertRow();
    if (entry.anchor) row.className = "cp-anchor";
    if (entry.ours) row.classList.add("cp-ours");
    entry.cells.forEach(({ value, low, high }, i) => {
      const cell = row.insertCell();
      cell.textContent = text(value, digits[i]);
      const hasInterval = low !== null && low !== undefined;
      if (!hasInterval) return;
      const interval = `${text(low, digits[i])} to ${text(high, digits[i])}`;
      cell.append(make("small", "", interval));
    });
  }

  function draw() {
    root.replaceChildren();
    const columns = props.value?.columns ?? [];
    const rows = [...(props.value?.rows ?? [])];
    if (!rows.length) return;
    if (by !== null && by < columns.length) rows.sort(compare);
    const table = make("table", "cp-table cp-board");
    const head = table.createTHead().insertRow();
    head.append(...columns.map(headCell));
    const body = table.createTBody();
    const digits = columns.map((_, i) => decimals(rows.map(({ cells }) => cells[i].value)));
    let group;
    for (const entry of rows) {
      // Ranks are within a group; sorted by something else there are none.
      if (by === null && entry.group && entry.group !== group) {
        group = entry.group;
        groupRow(body, group, columns.length);
      }
      bodyRow(body, entry, digits);
    }
    const scroll = make("div", "cp-scroll");
    scroll.tabIndex = 0; // who has a keyboard only scrolls it, too
    scroll.setAttribute("role", "region");
    scroll.setAttribute("aria-label", "Table of codecs; it scrolls sideways");
    scroll.append(table);
    root.append(scroll);
  }

  watch("value", draw);
  draw();
};
