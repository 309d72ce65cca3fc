import { lazy, Suspense, useEffect, useState } from "react";

const Later = lazy(() => import("./Later.jsx"));

export default function App() {
  const [items, setItems] = useState([]);
  const [path, setPath] = useState(location.pathname);

  const load = () => fetch("/api/items").then((answer) => answer.json()).then((page) => setItems(page.items));
  useEffect(() => void load(), []);

  async function add() {
    const body = JSON.stringify({ title: "from React" });
    await fetch("/api/items", { method: "POST", headers: { "content-type": "application/json" }, body });
    await load();
  }
  function go() {
    history.pushState(null, "", "/about/me");
    setPath(location.pathname);
  }
  return (
    <main style={{ borderLeft: "4px solid teal" }}>
      <h1>{path === "/about/me" ? "About me" : "Home"}</h1>
      <button onClick={add}>Add</button> <button onClick={go}>About</button>
      <ul>{items.map((item) => <li key={item.id}>{item.title}</li>)}</ul>
      <Suspense fallback="..."><Later /></Suspense>
    </main>
  );
}
