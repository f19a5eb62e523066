// A press on a verdict shows where the matcher looked; on a narrow screen the map may be far above.
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-object]');
  if (!button) return;
  document.querySelectorAll('.chip[aria-pressed]').forEach((one) => one.removeAttribute('aria-pressed'));
  button.setAttribute('aria-pressed', 'true');
  trigger('click', { object: button.dataset.object });
  document.querySelector('.viewer')?.scrollIntoView({ block: 'nearest', behavior: 'smooth' });
});
