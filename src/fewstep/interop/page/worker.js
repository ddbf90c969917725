// The worker in which the network runs, so that the page stays responsive. It answers {id, ask, ...} by {id, value} or {id, error}, and
// loads nothing: the page sends it the contents of the files.
let ort, session;

const answers = {
  // Import onnxruntime-web and create the network's session.
  async start({ script, wasm, model }) {
    const address = URL.createObjectURL(script);
    ort = await import(address);
    URL.revokeObjectURL(address);
    ort.env.wasm.numThreads = 1; // more threads need a server that isolates the page (cross-origin isolation)
    ort.env.wasm.wasmBinary = await wasm.arrayBuffer();
    session = await ort.InferenceSession.create(await model.arrayBuffer(), { executionProviders: ["wasm"] });
  },

  // Samples for `feeds`, each {type, data, dims}, and the milliseconds that they took.
  async run({ feeds }) {
    const inputs = {};
    for (const [name, { type, data, dims }] of Object.entries(feeds)) inputs[name] = new ort.Tensor(type, data, dims);
    const began = performance.now();
    const { samples } = await session.run(inputs);
    return { samples: samples.data, milliseconds: performance.now() - began };
  },
};

onmessage = async ({ data }) => {
  try {
    postMessage({ id: data.id, value: await answers[data.ask](data) });
  } catch (error) {
    postMessage({ id: data.id, error: error.message ?? String(error) });
  }
};
