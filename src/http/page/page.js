'use strict';
// Asks for this page again and again and takes over what is different in it. The worker alone renders: there is one
// place where a value becomes markup, with script and without.
(() => {
  const EVERY = 2000;
  const PATIENCE = 10000;
  const main = document.querySelector('main');
  const lost = document.getElementById('lost');
  const pause = document.getElementById('pause');
  const program = document.querySelector('body > script').text;
  let paused = false;
  let timer;

  // Makes `old` what `now` is, and leaves alone what is the same: focus, selection and places scrolled to stay.
  function takeOver(old, now) {
    if (old.isEqualNode(now)) return;
    if (old.nodeType !== now.nodeType || old.nodeName !== now.nodeName) {
      old.replaceWith(document.importNode(now, true));
      return;
    }
    if (old.nodeType !== Node.ELEMENT_NODE) {
      old.nodeValue = now.nodeValue;
      return;
    }
    for (const { name } of [...old.attributes]) if (!now.hasAttribute(name)) old.removeAttribute(name);
    for (const { name, value } of now.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
    const [before, after] = [[...old.childNodes], [...now.childNodes]];
    before.slice(after.length).forEach((child) => child.remove());
    after.forEach((child, n) => {
      if (n < before.length) takeOver(before[n], child);
      else old.append(document.importNode(child, true));
    });
  }

  async function update() {
    try {
      const answer = await fetch(location.pathname, { cache: 'no-store', signal: AbortSignal.timeout(PATIENCE) });
      if (!answer.ok) throw new Error(answer.status);
      const page = new DOMParser().parseFromString(await answer.text(), 'text/html');
      // A worker of another version has come up here.
      if (page.querySelector('body > script')?.text !== program) return location.reload();
      if (!paused) {
        takeOver(main, page.querySelector('main'));
        document.title = page.title;
      }
      lost.hidden = true;
    } catch {
      lost.hidden = false;
    }
    next();
  }

  function next() {
    clearTimeout(timer);
    if (!paused && !document.hidden) timer = setTimeout(update, EVERY);
  }

  pause.addEventListener('click', () => {
    paused = !paused;
    pause.setAttribute('aria-pressed', paused);
    pause.textContent = paused ? 'Paused' : 'Pause';
    if (paused) clearTimeout(timer);
    else update();
  });
  document.addEventListener('visibilitychange', () => {
    clearTimeout(timer);
    if (!paused && !document.hidden) update();
  });
  pause.hidden = false;
  next();
})();
