// Predicted shapes: the chosen one beside and over its photo, turning, and as a file made here.
(() => {
  "use strict";
  const at = (id) => document.getElementById(id);
  if (!at("shapes-data")) return;
  const data = JSON.parse(at("shapes-data").textContent);
  const unpack = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer;
  const faces = new Uint32Array(unpack(data.faces));
  const colors = Float32Array.from(new Uint8Array(unpack(data.colors)), (c) => c / 255);
  const choices = [...document.querySelectorAll('input[name="shape"]')];
  let vertices, name;

  const viewer = at("view") && globalThis.THREE ? makeViewer(at("view")) : null;
  choices.forEach((c) => c.addEventListener("change", () => show(c)));
  for (const id of ["label", "joints", "mesh"]) at(id).addEventListener("input", lay);
  at("glb").addEventListener("click", () => save(glb(), "model/gltf-binary", "glb"));
  at("obj").addEventListener("click", () => save(obj(), "text/plain", "obj"));
  choices[0].checked = true;
  show(choices[0]);

  function show(choice) {
    name = choice.value;
    vertices = new Float32Array(unpack(data.shapes[name]));
    const picture = choice.parentElement.querySelector("svg").cloneNode(true);
    at("photo").replaceChildren(picture);
    at("facts").innerHTML = choice.dataset.facts;
    lay();
    viewer?.show(picture.querySelector("image").href.baseVal);
  }

  function lay() {
    const picture = at("photo").firstElementChild;
    picture.querySelector(".two").style.display = at("label").checked ? "" : "none";
    picture.querySelector(".three").style.display = at("joints").checked ? "" : "none";
    picture.querySelector(".mesh").style.opacity = at("mesh").value;
  }

  // The view: an orthographic camera is what the network's weak perspective is, so the shape lies on its photo.
  function makeViewer(canvas) {
    const trial = document.createElement("canvas");
    if (!trial.getContext("webgl2") && !trial.getContext("webgl")) {
      const said = document.createElement("p");
      said.className = "note";
      said.textContent = "No 3D view: this browser gives no WebGL.";
      canvas.closest("figure").replaceChildren(said);
      return null;
    }
    const renderer = new THREE.WebGLRenderer({ canvas, antialias: true, alpha: true });
    const half = data.half, far = 6;
    const camera = new THREE.OrthographicCamera(-half, half, half, -half, 0.1, 4 * far);
    const scene = new THREE.Scene();
    const sun = new THREE.DirectionalLight(0xffffff, 0.62);
    sun.position.set(-0.5, 0.8, 1);
    camera.add(sun, new THREE.AmbientLight(0xffffff, 0.5));
    scene.add(camera);
    const geometry = new THREE.BufferGeometry();
    geometry.setIndex(new THREE.BufferAttribute(faces, 1));
    geometry.setAttribute("color", new THREE.BufferAttribute(colors, 3));
    const material = new THREE.MeshLambertMaterial({ vertexColors: true, side: THREE.DoubleSide });
    const photo = new THREE.Mesh(new THREE.PlaneGeometry(1, 1), new THREE.MeshBasicMaterial());
    photo.visible = false;
    scene.add(new THREE.Mesh(geometry, material), photo);

    const controls = new THREE.TrackballControls(camera, canvas);
    Object.assign(controls, { staticMoving: true, noPan: true, rotateSpeed: 2.2, keys: [] });
    Object.assign(controls, { minDistance: 0, maxDistance: Infinity });
    canvas.style.touchAction = "pan-y"; // a finger that moves up or down scrolls the page
    // The wheel belongs to the page until the view is chosen.
    controls.noZoom = true;
    canvas.addEventListener("focus", () => { controls.noZoom = false; });
    canvas.addEventListener("blur", () => { controls.noZoom = true; });

    let waiting = 0;
    const draw = () => {
      waiting = 0;
      controls.update();
      camera.zoom = Math.min(8, Math.max(0.3, camera.zoom));
      camera.updateProjectionMatrix();
      renderer.render(scene, camera);
    };
    const ask = () => { waiting ||= requestAnimationFrame(draw); };
    for (const kind of ["pointermove", "pointerup", "wheel"]) canvas.addEventListener(kind, ask);
    new ResizeObserver(() => {
      const { width, height } = canvas.parentElement.getBoundingClientRect();
      renderer.setPixelRatio(Math.min(2, devicePixelRatio));
      renderer.setSize(width, height, false);
      controls.handleResize();
      ask();
    }).observe(canvas.parentElement);
    canvas.addEventListener("pointerdown", () => controls.handleResize());

    const target = controls.target;
    const face = () => {
      camera.position.set(target.x, target.y, target.z + far);
      camera.up.set(0, 1, 0);
      camera.zoom = 1;
      ask();
    };
    const turn = (right, down) => {
      const eye = camera.position.clone().sub(target);
      const side = new THREE.Vector3().crossVectors(camera.up, eye).normalize();
      const turned = new THREE.Quaternion().setFromAxisAngle(camera.up.clone().normalize(), -right);
      turned.multiply(new THREE.Quaternion().setFromAxisAngle(side, -down));
      camera.up.applyQuaternion(turned);
      camera.position.copy(target).add(eye.applyQuaternion(turned));
      ask();
    };
    const step = Math.PI / 18;
    const keys = {
      ArrowLeft: () => turn(-step, 0), ArrowRight: () => turn(step, 0),
      ArrowUp: () => turn(0, -step), ArrowDown: () => turn(0, step),
      "+": () => { camera.zoom *= 1.15; ask(); }, "=": () => { camera.zoom *= 1.15; ask(); },
      "-": () => { camera.zoom /= 1.15; ask(); }, 0: face,
    };
    canvas.addEventListener("keydown", (event) => {
      if (!keys[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      keys[event.key]();
    });
    at("reset").addEventListener("click", face);
    at("behind").addEventListener("input", () => { photo.visible = at("behind").checked; ask(); });

    const loader = new THREE.TextureLoader();
    return {
      show(image) {
        geometry.setAttribute("position", new THREE.BufferAttribute(vertices, 3));
        geometry.computeVertexNormals();
        geometry.computeBoundingBox();
        geometry.computeBoundingSphere();
        const { min, max } = geometry.boundingBox;
        target.set(0, 0, (min.z + max.z) / 2);
        // What the picture shows of the stored crop fills the view; the rest of the crop lies around it.
        const box = at("photo").firstElementChild.viewBox.baseVal;
        photo.scale.setScalar((2 * half * 100) / box.width);
        photo.position.z = min.z - 0.1;
        photo.visible = false;
        const chosen = name;
        loader.load(image, (texture) => {
          if (chosen !== name) return;
          texture.minFilter = THREE.LinearFilter;
          photo.material.map?.dispose();
          photo.material.map = texture;
          photo.material.needsUpdate = true;
          photo.visible = at("behind").checked;
          canvas.dataset.drawn = name;
          ask();
        });
        canvas.setAttribute("aria-label", `Predicted shape of animal ${name} in 3D`);
        face();
      },
    };
  }

  function glb() {
    const linear = colors.map((c) => c ** 2.2); // glTF's colours are linear
    const low = [Infinity, Infinity, Infinity], high = [-Infinity, -Infinity, -Infinity];
    vertices.forEach((v, i) => {
      low[i % 3] = Math.min(low[i % 3], v);
      high[i % 3] = Math.max(high[i % 3], v);
    });
    const arrays = [vertices, linear, faces];
    const [FLOAT, UINT] = [5126, 5125];
    let end = 0;
    const bufferViews = arrays.map((a) => {
      end += a.byteLength;
      return { buffer: 0, byteOffset: end - a.byteLength, byteLength: a.byteLength };
    });
    const accessors = [
      { bufferView: 0, componentType: FLOAT, count: vertices.length / 3, type: "VEC3", min: low, max: high },
      { bufferView: 1, componentType: FLOAT, count: linear.length / 3, type: "VEC3" },
      { bufferView: 2, componentType: UINT, count: faces.length, type: "SCALAR" },
    ];
    const scene = {
      asset: { version: "2.0", generator: "wildshape" }, scene: 0, scenes: [{ nodes: [0] }],
      nodes: [{ mesh: 0, name }],
      meshes: [{ name, primitives: [{ attributes: { POSITION: 0, COLOR_0: 1 }, indices: 2, material: 0 }] }],
      materials: [{ doubleSided: true, pbrMetallicRoughness: { metallicFactor: 0, roughnessFactor: 0.9 } }],
      accessors, bufferViews, buffers: [{ byteLength: end }],
    };
    let text = JSON.stringify(scene);
    text += " ".repeat((4 - (text.length % 4)) % 4);
    const words = (...numbers) => new Uint32Array(numbers);
    return [
      words(0x46546c67, 2, 28 + text.length + end), words(text.length, 0x4e4f534a), text, words(end, 0x004e4942), ...arrays,
    ];
  }

  function obj() {
    const lines = [`o ${name}`], round = (x) => x.toFixed(5);
    for (let i = 0; i < vertices.length; i += 3) {
      lines.push(`v ${[...vertices.slice(i, i + 3), ...colors.slice(i, i + 3)].map(round).join(" ")}`);
    }
    for (let i = 0; i < faces.length; i += 3) lines.push(`f ${faces[i] + 1} ${faces[i + 1] + 1} ${faces[i + 2] + 1}`);
    return [lines.join("\n") + "\n"];
  }

  function save(parts, type, ending) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob(parts, { type }));
    link.download = `${name}.${ending}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  }
})();
