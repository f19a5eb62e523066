// Reads a chosen, dropped or pasted picture in the browser; it goes to the server with a question alone.
const drop = () => element.querySelector('.drop');
const take = (file) => {
  if (!file) return;
  if (file.size > props.most_bytes) {
    trigger('select', { words: `${file.name} has ${(file.size / 1048576).toFixed(1)} MiB; the limit is ${props.most_bytes / 1048576} MiB. Save the picture smaller; models see far less anyway.` });
    return;
  }
  const reader = new FileReader();
  reader.onload = () => {
    props.value = { name: file.name || 'pasted.png', data: reader.result };
    trigger('upload');
  };
  reader.readAsDataURL(file);
};
element.addEventListener('change', (event) => {
  if (event.target.type !== 'file') return;
  take(event.target.files[0]);
  event.target.value = '';  // the same file may be chosen again
});
for (const kind of ['dragover', 'dragleave', 'drop']) {
  element.addEventListener(kind, (event) => {
    event.preventDefault();
    drop().classList.toggle('over', kind === 'dragover');
    if (kind === 'drop') take(event.dataTransfer.files[0]);
  });
}
document.addEventListener('paste', (event) => {
  const file = [...(event.clipboardData?.files ?? [])].find((one) => one.type.startsWith('image/'));
  if (file) { event.preventDefault(); take(file); }
});
