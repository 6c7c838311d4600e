from segmenter_tester import BaseSegmenterTester


class TestDeepLabV3Plus(BaseSegmenterTester):
    architecture = "deeplabv3plus"
    decoder_channels = 32
