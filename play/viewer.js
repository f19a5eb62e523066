// The slider acts in the browser alone, and keeps its place when another map comes.
let share = 85;
const place = () => {
  const slider = element.querySelector('input[type=range]');
  if (slider) slider.value = share;
  element.style.setProperty('--map', share / 100);
};
element.addEventListener('input', (event) => {
  if (event.target.type !== 'range') return;
  share = Number(event.target.value);
  place();
});
element.addEventListener('click', (event) => {
  if (!event.target.closest('button[data-object]')) return;
  document.querySelectorAll('.chip[aria-pressed]').forEach((one) => one.removeAttribute('aria-pressed'));
  trigger('click', { object: '' });
});
watch('value', place);
place();
