export function mountQueue(root) {}
