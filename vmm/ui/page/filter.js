// What is searched for: words, all of which must fit. `owner:x`, `state:x`, `cell:3` and `#17` look at one property; `-x` wants it not to fit.

export function parse(text) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean).map(word);
  return words.length ? words : null;
}

function word(text) {
  const not = text.length > 1 && text.startsWith("-");
  if (not) text = text.slice(1);
  const colon = text.indexOf(":");
  const key = text.slice(0, colon);
  if (text.startsWith("#")) return { not, key: "id", value: text.slice(1) };
  if (["owner", "state", "cell", "name", "id"].includes(key)) return { not, key, value: text.slice(colon + 1) };
  return { not, key: "", value: text };
}

/** Whether a guest fits. What is still being typed (`owner:`) fits everybody. */
export function fits(words, model, slot) {
  return words.every((word) => word.value === "" || one(word, model, slot) !== word.not);
}

function one({ key, value }, model, slot) {
  switch (key) {
    case "id": return String(model.id[slot]) === value;
    case "cell": return String(model.cell[slot]) === value;
    case "owner": return model.ownerOf(slot).toLowerCase().includes(value);
    case "state": return model.stateOf(slot).startsWith(value);
    case "name": return model.name[slot].toLowerCase().includes(value);
    default:
      return model.name[slot].toLowerCase().includes(value) || model.ownerOf(slot).toLowerCase().includes(value) ||
        model.stateOf(slot).startsWith(value);
  }
}
