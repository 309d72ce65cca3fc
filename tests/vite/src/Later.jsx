export default function Later() {
  return <p>Loaded later</p>;
}
