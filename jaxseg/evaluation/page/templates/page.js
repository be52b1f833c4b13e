"use strict";
(() => {
  const root = document.documentElement;
  const prefersDark = window.matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme || (prefersDark.matches ? "dark" : "light")) === "dark";
  const redraws = [];
  const theme = document.getElementById("theme");
  const show = () => { theme.setAttribute("aria-pressed", String(isDark())); redraws.forEach((draw) => draw()); };
  theme.hidden = false;
  theme.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; show(); });
  prefersDark.addEventListener("change", show);

  // Tables whose heads sort them.
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    const body = table.tBodies[0];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent.trim();
      head.textContent = "";
      head.append(button);
      button.addEventListener("click", () => {
        const isText = head.dataset.kind === "text";
        const was = head.getAttribute("aria-sort");
        const order = was ? (was === "ascending" ? "descending" : "ascending") : (isText ? "ascending" : "descending");
        heads.forEach((h) => h.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", order);
        const key = (row) => isText ? row.cells[column].textContent.trim() : Number(row.cells[column].dataset.value);
        const sign = order === "ascending" ? 1 : -1;
        const rows = [...body.rows].map((row) => [key(row), row]);
        rows.sort(([a], [b]) => sign * (isText ? a.localeCompare(b) : a - b));
        body.append(...rows.map(([, row]) => row));
      });
    });
  }

  // Two pictures over each other, with a divider.
  for (const example of document.querySelectorAll(".example")) {
    const pictures = [...example.querySelectorAll(".strip img")];
    const [viewer, controls] = [example.querySelector(".viewer"), example.querySelector(".controls")];
    const [under, over, edge] = viewer.children;
    const [left, right, slider] = ["left", "right", "slider"].map((name) => controls.querySelector("." + name));
    const choose = () => {
      over.src = pictures[left.value].src;
      over.alt = "left: " + pictures[left.value].alt;
      under.src = pictures[right.value].src;
      under.alt = "right: " + pictures[right.value].alt;
    };
    const divide = () => {
      over.style.clipPath = "inset(0 " + (100 - slider.value) + "% 0 0)";
      edge.style.left = slider.value + "%";
      slider.setAttribute("aria-valuetext", slider.value + " percent " + left.selectedOptions[0].text);
    };
    left.addEventListener("change", () => { choose(); divide(); });
    right.addEventListener("change", choose);
    slider.addEventListener("input", divide);
    let dragged = false;
    const drag = (event) => {
      const box = viewer.getBoundingClientRect();
      slider.value = Math.round(100 * (event.clientX - box.left) / box.width);
      divide();
    };
    viewer.addEventListener("pointerdown", (event) => { dragged = true; viewer.setPointerCapture(event.pointerId); drag(event); event.preventDefault(); });
    viewer.addEventListener("pointermove", (event) => { if (dragged) drag(event); });
    for (const end of ["pointerup", "pointercancel"]) viewer.addEventListener(end, () => { dragged = false; });
    viewer.hidden = controls.hidden = false;
    choose();
    divide();
  }

  // The confusion matrix.
  const data = document.getElementById("matrix-data");
  if (data) {
    const { classes, counts } = JSON.parse(data.textContent);
    const k = classes.length;
    const [canvas, frame, line] = ["matrix", "matrix-frame", "matrix-cell"].map((id) => document.getElementById(id));
    const [norm, by] = ["matrix-norm", "matrix-order"].map((id) => document.getElementById(id));
    const rows = counts.map((row) => row.reduce((a, b) => a + b, 0));
    const columns = classes.map((_, j) => counts.reduce((sum, row) => sum + row[j], 0));
    const total = rows.reduce((a, b) => a + b, 0);
    const largest = Math.log1p(Math.max(1, ...counts.map((row) => Math.max(...row))));
    const iou = classes.map((_, i) => counts[i][i] / Math.max(rows[i] + columns[i] - counts[i][i], 1));
    let order = classes.map((_, i) => i);
    let cell = 0;
    let at = [0, 0];
    const context = canvas.getContext("2d");
    const orders = { id: () => 0, name: (a, b) => classes[a].localeCompare(classes[b]), iou: (a, b) => iou[a] - iou[b], pixels: (a, b) => rows[b] - rows[a] };
    const percent = (x) => (100 * x).toFixed(2) + " %";
    const amount = (i, j) => {
      if (norm.value === "row") return counts[i][j] / Math.max(rows[i], 1);
      if (norm.value === "column") return counts[i][j] / Math.max(columns[j], 1);
      return Math.log1p(counts[i][j]) / largest;
    };
    const label = (name) => name.length > 16 ? name.slice(0, 15) + "…" : name;
    const fit = () => Math.max(4, Math.min(44, Math.floor((Math.min(frame.parentElement.clientWidth, 900) - 150) / k)));
    const margins = () => cell >= 11 ? 132 : 24;
    const draw = () => {
      const style = getComputedStyle(root);
      const color = (name) => style.getPropertyValue(name).trim();
      const [low, high] = ["--low", "--high"].map((name) => color(name).split(",").map(Number));
      const m = margins();
      const side = m + k * cell + 2;
      // Browsers refuse canvases of more than 16,384 pixels a side.
      const ratio = Math.min(window.devicePixelRatio || 1, 16000 / side);
      canvas.width = canvas.height = Math.round(side * ratio);
      canvas.style.width = canvas.style.height = side + "px";
      context.setTransform(ratio, 0, 0, ratio, 0, 0);
      context.fillStyle = color("--panel");
      context.fillRect(0, 0, side, side);
      const gap = cell > 8 ? 1 : 0;
      order.forEach((i, y) => order.forEach((j, x) => {
        const share = amount(i, j);
        const shade = norm.value === "pixels" ? share : Math.sqrt(share);
        context.fillStyle = "rgb(" + low.map((v, c) => Math.round(v + (high[c] - v) * shade)).join(",") + ")";
        context.fillRect(m + x * cell, m + y * cell, cell - gap, cell - gap);
        if (cell >= 34 && norm.value !== "pixels" && share >= 0.005) {
          context.fillStyle = shade > 0.55 ? color("--bg") : color("--ink");
          context.font = "11px system-ui, sans-serif";
          context.textAlign = "center";
          context.textBaseline = "middle";
          context.fillText((100 * share).toFixed(share < 0.0995 ? 1 : 0), m + (x + 0.5) * cell, m + (y + 0.5) * cell);
        }
      }));
      context.fillStyle = color("--ink");
      context.font = Math.min(13, Math.max(9, cell - 1)) + "px system-ui, sans-serif";
      if (cell >= 11) {
        context.textBaseline = "middle";
        order.forEach((i, n) => {
          context.textAlign = "right";
          context.fillText(label(classes[i]), m - 5, m + (n + 0.5) * cell);
          context.save();
          context.translate(m + (n + 0.5) * cell, m - 5);
          context.rotate(-Math.PI / 2);
          context.textAlign = "left";
          context.fillText(label(classes[i]), 0, 0);
          context.restore();
        });
      } else {
        context.font = "12px system-ui, sans-serif";
        context.textAlign = "left";
        context.textBaseline = "top";
        context.fillText("prediction", m, 6);
        context.save();
        context.translate(6, m + 4);
        context.rotate(Math.PI / 2);
        context.textBaseline = "bottom";
        context.fillText("truth", 0, 0);
        context.restore();
      }
      context.strokeStyle = color("--focus");
      context.lineWidth = 2;
      context.strokeRect(m + at[1] * cell - 1, m + at[0] * cell - 1, cell + 1, cell + 1);
    };
    const say = () => {
      const [i, j] = [order[at[0]], order[at[1]]];
      const what = i === j ? "Truth and prediction " + classes[i] : "Truth " + classes[i] + ", prediction " + classes[j];
      line.textContent = what + ": " + counts[i][j].toLocaleString("en") + " pixels, " + percent(counts[i][j] / Math.max(rows[i], 1)) + " of the truth, " + percent(counts[i][j] / Math.max(columns[j], 1)) + " of the prediction, " + percent(counts[i][j] / Math.max(total, 1)) + " of all.";
    };
    const follow = () => {
      const m = margins();
      const [top, left] = [m + at[0] * cell, m + at[1] * cell];
      if (top < frame.scrollTop || top + cell > frame.scrollTop + frame.clientHeight) frame.scrollTop = top - frame.clientHeight / 2;
      if (left < frame.scrollLeft || left + cell > frame.scrollLeft + frame.clientWidth) frame.scrollLeft = left - frame.clientWidth / 2;
    };
    const move = (row, column) => {
      at = [Math.min(Math.max(row, 0), k - 1), Math.min(Math.max(column, 0), k - 1)];
      draw();
      say();
    };
    const zoom = (factor) => {
      cell = factor ? Math.min(Math.max(Math.round(cell * factor), 3), 60) : fit();
      draw();
      follow();
    };
    const keys = {
      ArrowUp: () => move(at[0] - 1, at[1]), ArrowDown: () => move(at[0] + 1, at[1]),
      ArrowLeft: () => move(at[0], at[1] - 1), ArrowRight: () => move(at[0], at[1] + 1),
      Home: () => move(at[0], 0), End: () => move(at[0], k - 1),
      "+": () => zoom(1.3), "=": () => zoom(1.3), "-": () => zoom(1 / 1.3), "0": () => zoom(0),
    };
    canvas.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in keys)) return;
      event.preventDefault();
      keys[event.key]();
      follow();
    });
    const pointed = (event) => {
      const box = canvas.getBoundingClientRect();
      const m = margins();
      const [row, column] = [event.clientY - box.top - m, event.clientX - box.left - m].map((v) => Math.floor(v / cell));
      if (row >= 0 && column >= 0 && row < k && column < k && (row !== at[0] || column !== at[1])) move(row, column);
    };
    canvas.addEventListener("pointermove", pointed);
    canvas.addEventListener("pointerdown", pointed);
    const arrange = () => {
      order = classes.map((_, i) => i).sort((a, b) => orders[by.value](a, b) || a - b);
      move(0, 0);
    };
    norm.addEventListener("change", draw);
    by.addEventListener("change", arrange);
    document.getElementById("zoom-in").addEventListener("click", () => zoom(1.3));
    document.getElementById("zoom-out").addEventListener("click", () => zoom(1 / 1.3));
    document.getElementById("zoom-all").addEventListener("click", () => zoom(0));
    document.getElementById("matrix-controls").hidden = false;
    redraws.push(draw);
    cell = fit();
    arrange();
  }
  show();
})();
