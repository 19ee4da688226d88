"""What sources promise, in Chinese, by the catalogue's own English sentence: a changed one is not mistranslated.

A sentence without a translation stands in English in both languages; a test names it.
"""

from __future__ import annotations

CLAIMS_ZH: dict[str, str] = {
    "Half the memory, much faster, at a loss that nobody sees: always, on a GPU; on a CPU far slower.": (
        "内存减半，快得多，损失肉眼不可见：在 GPU 上随时可用；在 CPU 上慢得多。"
    ),
    "Half the memory with float32's range: no VAE overflows, and CPUs can do it.": (
        "内存减半，而数值范围与 float32 相同：VAE 不会溢出，CPU 也能胜任。"
    ),
    "Float32 products with ten bits of mantissa, on GPUs since Ampere: between FP32 and FP16 in speed.": (
        "以十位尾数计算 float32 乘法，需 Ampere 及更新的 GPU：速度介于 FP32 与 FP16 之间。"
    ),
    "Weights rest in eight bits, widened layer by layer: a quarter of float32's bytes.": (
        "权重以八位存放，逐层展开后计算：字节数为 float32 的四分之一。"
    ),
    "No difference between CUDA 11.8 and 12.1.": "CUDA 11.8 与 12.1 之间没有差别。",
    "What everything else should be measured against: the whole matrix of scores is written to memory.": (
        "其他一切的参照：整个注意力分数矩阵都写入内存。"
    ),
    "As fast and as small as xFormers; the default since PyTorch 2.0, so there is nothing to switch on.": (
        "与 xFormers 同样快、同样省内存；自 PyTorch 2.0 起为默认，无需开启。"
    ),
    "One head at a time; saves memory where there is no fused attention, and time nowhere.": (
        "一次计算一个注意力头；只在没有融合注意力时省内存，从不省时间。"
    ),
    "One call chooses the kernel of every attention of the model.": "一次调用为模型的所有注意力选定内核。",
    "Fused attention before PyTorch 2.0 had its own.": "在 PyTorch 2.0 自带之前的融合注意力。",
    "SDXL's VAE, tuned to stay within float16: 15 % less memory, the same picture.": (
        "经过调整、不会超出 float16 的 SDXL VAE：内存减少 15%，图像不变。"
    ),
    "A distilled VAE: far less memory, about the same time, slightly more contrast.": (
        "蒸馏得到的 VAE：内存大幅减少，时间相近，对比度略高。"
    ),
    "Decodes the pictures of a batch one by one; nothing at batch 1.": "逐张解码一批图像；批大小为 1 时没有作用。",
    "Decodes tiles and blends their seams, for pictures of 4K and 8K; nothing at the size of training.": (
        "分块解码并融合接缝，用于 4K 与 8K 图像；在训练尺寸下没有作用。"
    ),
    "The untiled picture within a bound of memory, in strips with the statistics of the whole.": (
        "在限定内存内得到不分块的图像：逐条带计算，统计量取自整幅。"
    ),
    "Convolutions read what lies together; faster on most devices, same picture.": (
        "卷积读取相邻存放的数据；在多数设备上更快，图像不变。"
    ),
    "No cost, more pleasing pictures, less coherent ones.": "不花代价，画面更讨喜，但不够连贯。",
    "One product instead of three in self-attention; the former weights stay beside the fused ones.": (
        "自注意力中以一次乘法代替三次；原有权重仍与融合后的并存。"
    ),
    "25 to 30 steps of 50 are enough: -50 % of the time.": "50 步中 25 至 30 步就够：时间减少 50%。",
    "25 to 30 steps of 50 are enough: -40 % of the time.": "50 步中 25 至 30 步就够：时间减少 40%。",
    "What the prompt asks for is there early: without guidance afterwards -25 % of the time.": (
        "提示词的内容很早就已成形：此后不用引导，时间减少 25%。"
    ),
    "What the prompt asks for is there early: without guidance afterwards -12.5 % of the time.": (
        "提示词的内容很早就已成形：此后不用引导，时间减少 12.5%。"
    ),
    "The base does 80 % of the steps, an expert for the last ones the rest: clearly better.": (
        "基础模型完成 80% 的步数，其余交给专精末尾步骤的模型：明显更好。"
    ),
    "The base does 90 % of the steps, an expert for the last ones the rest: clearly better.": (
        "基础模型完成 90% 的步数，其余交给专精末尾步骤的模型：明显更好。"
    ),
    "10 steps over the finished picture, of which the default strength runs three in ten: disappointing.": (
        "在成图上再做 10 步，默认强度只运行其中十分之三：令人失望。"
    ),
    "20 steps over the finished picture, of which the default strength runs three in ten: disappointing.": (
        "在成图上再做 20 步，默认强度只运行其中十分之三：令人失望。"
    ),
    "Component by component: half the memory. Many pictures share the loading; a single one pays for it.": (
        "逐个组件运行：内存减半。多张图分摊加载时间，单张图则独自承担。"
    ),
    "A server decodes: no VAE in this machine's memory, and the network's time instead of the decoder's.": (
        "由服务器解码：本机内存中没有 VAE，以网络时间代替解码时间。"
    ),
    "A server reads the prompt: no text encoder in this machine's memory.": (
        "由服务器编码提示词：本机内存中没有文本编码器。"
    ),
    "Two steps of three compute the outermost blocks alone: more than twice as fast, visibly worse.": (
        "三步中有两步只计算最外层的块：快一倍以上，画质明显变差。"
    ),
    "Keeps attention, that to the prompt longest: up to 10.5 times as fast on video models.": (
        "保留注意力的结果，对提示词的保留最久：视频模型上最多快 10.5 倍。"
    ),
    "Extrapolates what blocks will give: 4.99 times as fast on FLUX.": "外推各块的输出：在 FLUX 上快 4.99 倍。",
    "The same with the library's own choice of modules, whose names a UNet does not have.": (
        "同上，但用库自选的模块，而 UNet 中没有这些名称。"
    ),
    "Leaves out all blocks but the first where the first has changed little.": (
        "若第一个块变化很小，则略去其余所有块。"
    ),
    "Leaves out the blocks where the input, filtered to what this step can still change, has changed little.": (
        "把输入滤到本步仍能改变的部分，若其变化很小，则略去各块。"
    ),
    "Leaves out steps by how the size of residuals falls: 2.1 to 2.68 times as fast on video models.": (
        "按残差大小的衰减略去若干步：视频模型上快 2.1 至 2.68 倍。"
    ),
    "Keeps attention, and guesses what guidance is measured from: 1.67 times as fast on a video model.": (
        "保留注意力的结果，并推测引导所需的无条件输出：某视频模型上快 1.67 倍。"
    ),
    "Leaves out all blocks but the first where the first has changed little; for video models and Flux.": (
        "若第一个块变化很小，则略去其余所有块；用于视频模型与 Flux。"
    ),
    "The first blocks decide whether the others are computed; one line for most transformers.": (
        "由前几个块决定是否计算其余的块；多数 Transformer 只需一行代码。"
    ),
    "Tokens that are alike go through self-attention as one: up to twice as fast, 5.6 times less memory.  As it"
    " comes, only where attention has full resolution; SDXL has none there.": (
        "相似的 token 合为一个通过自注意力：最多快一倍，内存为 5.6 分之一。"
        "默认只作用于全分辨率的注意力，而 SDXL 在该处没有。"
    ),
    "Tokens that are alike go through self-attention as one: up to twice as fast, 5.6 times less memory.": (
        "相似的 token 合为一个通过自注意力：最多快一倍，内存为 5.6 分之一。"
    ),
    "Attention to the prompt converges early and is kept from then on: 10 to 50 % faster.": (
        "对提示词的注意力很早收敛，此后保留不变：快 10% 至 50%。"
    ),
    "A quick win for one line: the whole denoiser as one graph.": "一行代码，很快见效：整个去噪器成为一张图。",
    "Compiles what is repeated once: as fast as the whole, after a fraction of the time.": (
        "重复的部分只编译一次：与整体编译同样快，等待时间只有几分之一。"
    ),
    "Faster than hoped, somewhat more memory, 19 seconds for the first picture.": (
        "比预期更快，内存略多，首张图 19 秒。"
    ),
    "The fastest of all: 45 % less time, no more memory, slightly better pictures.": (
        "最快：时间减少 45%，内存不增，画质略好。"
    ),
    "Linear layers keep their weights in eight bits and compute as before; half of the bytes of FP16.": (
        "线性层的权重以八位存放，计算方式不变；字节数为 FP16 的一半。"
    ),
    "Linear layers multiply in eight bits; activations are rounded too. Fast where int8 kernels are.": (
        "线性层以八位相乘，激活值也舍入。有 int8 内核之处才快。"
    ),
    "Linear layers keep their weights in eight-bit floats; half of the bytes of FP16.": (
        "线性层的权重以八位浮点存放；字节数为 FP16 的一半。"
    ),
    "Linear layers keep their weights in four bits; a quarter of the bytes of FP16.": (
        "线性层的权重以四位存放；字节数为 FP16 的四分之一。"
    ),
    "LLM.int8(): linear layers in eight bits, with scales by row; half of the bytes of FP16.": (
        "LLM.int8()：线性层以八位存放，逐行缩放；字节数为 FP16 的一半。"
    ),
    "Linear layers in four bits, in steps for normally distributed weights; a quarter of FP16's bytes.": (
        "线性层以四位存放，刻度适合正态分布的权重；字节数为 FP16 的四分之一。"
    ),
    "Linear and convolution layers keep their weights in eight bits; half of the bytes of FP16.": (
        "线性层与卷积层的权重以八位存放；字节数为 FP16 的一半。"
    ),
    "Linear layers from 16384 weights on in eight bits, with almost no difference in the picture.": (
        "16384 个权重以上的线性层以八位存放，图像几乎没有差别。"
    ),
    "Linear layers multiply in eight bits on a CPU. Deprecated in favour of torchao; still runs.": (
        "线性层在 CPU 上以八位相乘。已被 torchao 取代，但仍可运行。"
    ),
    "Each part waits on the CPU until it is called: half of the memory, little time lost.": (
        "各组件在 CPU 上等到被调用：内存减半，时间损失很小。"
    ),
    "Each layer waits on the CPU until it runs: the least memory, and it tests one's patience.": (
        "每一层在 CPU 上等到运行：内存最少，考验耐心。"
    ),
    "Each layer waits in a file until it runs; saves memory on a CPU too.": (
        "每一层在文件中等到运行；在 CPU 上也省内存。"
    ),
    "Layers wait on the CPU, the next is fetched while one runs: sequential offload's memory, faster.": (
        "各层在 CPU 上等待，运行当前层时取来下一层：内存与顺序卸载相同，但更快。"
    ),
    "Layers wait in files; saves memory on a CPU too.": "各层在文件中等待；在 CPU 上也省内存。",
    "The denoiser in Intel's engine: about twice as fast as eager torch on a CPU.": (
        "去噪器在 Intel 的引擎中运行：在 CPU 上约为 torch 即时执行的两倍快。"
    ),
    "The denoiser as a file that many engines read: about twice as fast as eager torch on a CPU.": (
        "去噪器存为多种引擎可读的文件：在 CPU 上约为 torch 即时执行的两倍快。"
    ),
    "8 s instead of 14 s for a picture, after half an hour of preparation.": (
        "准备半小时后，每张图 8 秒而非 14 秒。"
    ),
    "One picture on several GPUs; for SDXL it splits guidance over two.": (
        "一张图分到多块 GPU 上；对 SDXL 则把引导分到两块上。"
    ),
    "Caching, quantising and compiling from one configuration.": "用一份配置完成缓存、量化与编译。",
    "The parts as Core ML models, for Apple's Neural Engine.": (
        "把各组件转为 Core ML 模型，供 Apple 神经引擎使用。"
    ),
    "torch's own backend for Apple silicon: the pipeline moved, nothing else.": (
        "torch 自带的 Apple 芯片后端：只需移动管线。"
    ),
    "The pipeline moved to an HPU; diffusers knows the device.": "把管线移到 HPU 上；diffusers 支持该设备。",
    "The pipeline moved to Trainium or Inferentia; SDXL's pipeline knows the device.": (
        "把管线移到 Trainium 或 Inferentia 上；SDXL 管线支持该设备。"
    ),
}
