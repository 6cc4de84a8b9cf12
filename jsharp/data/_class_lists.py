"""Long class lists of published datasets; `jsharp.data.splits` has their sources."""

TIERED_IMAGENET = {
  "train": """
    n01530575 n01531178 n01532829 n01534433 n01537544 n01558993 n01560419 n01580077
    n01582220 n01592084 n01601694 n01675722 n01677366 n01682714 n01685808 n01687978
    n01688243 n01689811 n01692333 n01693334 n01694178 n01695060 n01728572 n01728920
    n01729322 n01729977 n01734418 n01735189 n01737021 n01739381 n01740131 n01742172
    n01744401 n01748264 n01749939 n01751748 n01753488 n01755581 n01756291 n01847000
    n01855032 n01855672 n01860187 n02002556 n02002724 n02006656 n02007558 n02009229
    n02009912 n02011460 n02012849 n02013706 n02017213 n02018207 n02018795 n02025239
    n02027492 n02028035 n02033041 n02037110 n02051845 n02056570 n02058221 n02088094
    n02088238 n02088364 n02088466 n02088632 n02089078 n02089867 n02089973 n02090379
    n02090622 n02090721 n02091032 n02091134 n02091244 n02091467 n02091635 n02091831
    n02092002 n02092339 n02093256 n02093428 n02093647 n02093754 n02093859 n02093991
    n02094114 n02094258 n02094433 n02095314 n02095570 n02095889 n02096051 n02096177
    n02096294 n02096437 n02096585 n02097047 n02097130 n02097209 n02097298 n02097474
    n02097658 n02098105 n02098286 n02098413 n02123045 n02123159 n02123394 n02123597
    n02124075 n02125311 n02127052 n02128385 n02128757 n02128925 n02129165 n02129604
    n02130308 n02389026 n02391049 n02395406 n02396427 n02397096 n02398521 n02403003
    n02408429 n02410509 n02412080 n02415577 n02417914 n02422106 n02422699 n02423022
    n02437312 n02437616 n02480495 n02480855 n02481823 n02483362 n02483708 n02484975
    n02486261 n02486410 n02487347 n02488291 n02488702 n02489166 n02490219 n02492035
    n02492660 n02493509 n02493793 n02494079 n02497673 n02500267 n02667093 n02672831
    n02676566 n02687172 n02690373 n02692877 n02708093 n02727426 n02749479 n02776631
    n02782093 n02787622 n02791270 n02793495 n02794156 n02799071 n02802426 n02804610
    n02825657 n02837789 n02840245 n02841315 n02843684 n02859443 n02865351 n02871525
    n02879718 n02883205 n02892767 n02895154 n02910353 n02927161 n02950826 n02951358
    n02951585 n02963159 n02979186 n02981792 n02988304 n02992211 n02992529 n03000247
    n03017168 n03028079 n03032252 n03041632 n03075370 n03085013 n03089624 n03095699
    n03109150 n03110669 n03134739 n03146219 n03187595 n03188531 n03196217 n03197337
    n03208938 n03220513 n03249569 n03272010 n03325584 n03344393 n03347037 n03372029
    n03394916 n03404251 n03424325 n03445777 n03447447 n03447721 n03452741 n03457902
    n03461385 n03467068 n03476684 n03481172 n03494278 n03495258 n03498962 n03527444
    n03529860 n03534580 n03544143 n03584254 n03594734 n03595614 n03598930 n03617480
    n03627232 n03630383 n03637318 n03649909 n03657121 n03658185 n03661043 n03662601
    n03673027 n03692522 n03706229 n03710721 n03720891 n03721384 n03770439 n03773504
    n03777754 n03781244 n03782006 n03788195 n03788365 n03803284 n03804744 n03838899
    n03840681 n03841143 n03854065 n03857828 n03866082 n03874599 n03877845 n03884397
    n03891332 n03902125 n03929855 n03942813 n03947888 n03954731 n03956157 n03967562
    n03970156 n03980874 n04005630 n04008634 n04009552 n04023962 n04044716 n04081281
    n04086273 n04090263 n04118538 n04118776 n04127249 n04136333 n04141076 n04141327
    n04141975 n04147183 n04153751 n04154565 n04162706 n04192698 n04200800 n04208210
    n04229816 n04254680 n04266014 n04273569 n04311174 n04317175 n04325704 n04328186
    n04346328 n04347754 n04350905 n04355338 n04356056 n04370456 n04371430 n04376876
    n04392985 n04409515 n04417672 n04423845 n04435653 n04443257 n04462240 n04479046
    n04483307 n04487394 n04507155 n04515003 n04523525 n04536866 n04540053 n04548280
    n04552348 n04589890 n04590129 n04591157 n04606251 n04612504 n06785654
  """,
  "val": """
    n02099267 n02099429 n02099601 n02099712 n02099849 n02100236 n02100583 n02100735
    n02100877 n02101006 n02101388 n02101556 n02102040 n02102177 n02102318 n02102480
    n02102973 n02666196 n02701002 n02704792 n02791124 n02804414 n02814533 n02870880
    n02930766 n02966193 n02974003 n02977058 n03016953 n03018349 n03100240 n03125729
    n03131574 n03179701 n03180011 n03201208 n03207941 n03259280 n03290653 n03297495
    n03337140 n03345487 n03376595 n03388549 n03417042 n03425413 n03444034 n03445924
    n03483316 n03485407 n03496892 n03532672 n03584829 n03594945 n03642806 n03670208
    n03742115 n03761084 n03770679 n03777568 n03785016 n03796401 n03832673 n03874293
    n03891251 n03930630 n03944341 n03977966 n03992509 n03998194 n04019541 n04037443
    n04040759 n04067472 n04070727 n04099969 n04111531 n04238763 n04243546 n04252225
    n04285008 n04344873 n04371774 n04372370 n04380533 n04428191 n04429376 n04442312
    n04447861 n04461696 n04467665 n04517823 n04525305 n04542943 n04550184 n04554684
    n06359193
  """,
  "test": """
    n01440764 n01443537 n01484850 n01491361 n01494475 n01496331 n01498041 n02104029
    n02104365 n02105056 n02105162 n02105251 n02105412 n02105505 n02105641 n02105855
    n02106030 n02106166 n02106382 n02106550 n02106662 n02107142 n02107312 n02107574
    n02107683 n02107908 n02108000 n02108089 n02108422 n02108551 n02108915 n02109047
    n02109525 n02109961 n02110063 n02110185 n02110627 n02165105 n02165456 n02167151
    n02168699 n02169497 n02172182 n02174001 n02177972 n02190166 n02206856 n02219486
    n02226429 n02229544 n02231487 n02233338 n02236044 n02256656 n02259212 n02264363
    n02268443 n02268853 n02276258 n02277742 n02279972 n02280649 n02281406 n02281787
    n02514041 n02526121 n02536864 n02606052 n02607072 n02640242 n02641379 n02643566
    n02655020 n02788148 n02795169 n02808440 n02815834 n02823428 n02894605 n02909870
    n02939185 n03000134 n03063599 n03063689 n03160309 n03314780 n03459775 n03633091
    n03786901 n03930313 n03937543 n03950228 n03983396 n04049303 n04239074 n04326547
    n04398044 n04493381 n04501370 n04522168 n04553703 n04557648 n04560804 n04562935
    n04579145 n04591713 n04604644 n07565083 n07579787 n07583066 n07584110 n07590611
    n07613480 n07614500 n07615774 n07697313 n07697537 n07714571 n07714990 n07715103
    n07716358 n07716906 n07717410 n07717556 n07718472 n07718747 n07720875 n07730033
    n07734744 n07742313 n07745940 n07747607 n07749582 n07753113 n07753275 n07753592
    n07754684 n07760859 n07768694 n07802026 n07831146 n07836838 n07860988 n07873807
    n07875152 n07880968 n07892512 n07920052 n07930864 n07932039 n09193705 n09246464
    n09256479 n09288635 n09332890 n09399592 n09421951 n09428293 n09468604 n09472597
  """,
}
"""WordNet ids of the 351 / 97 / 160 classes of tieredImageNet."""

CIFAR_100 = {
  "aquatic_mammals": "beaver dolphin otter seal whale",
  "fish": "aquarium_fish flatfish ray shark trout",
  "flowers": "orchid poppy rose sunflower tulip",
  "food_containers": "bottle bowl can cup plate",
  "fruit_and_vegetables": "apple mushroom orange pear sweet_pepper",
  "household_electrical_devices": "clock keyboard lamp telephone television",
  "household_furniture": "bed chair couch table wardrobe",
  "insects": "bee beetle butterfly caterpillar cockroach",
  "large_carnivores": "bear leopard lion tiger wolf",
  "large_man-made_outdoor_things": "bridge castle house road skyscraper",
  "large_natural_outdoor_scenes": "cloud forest mountain plain sea",
  "large_omnivores_and_herbivores": "camel cattle chimpanzee elephant kangaroo",
  "medium_mammals": "fox porcupine possum raccoon skunk",
  "non-insect_invertebrates": "crab lobster snail spider worm",
  "people": "baby boy girl man woman",
  "reptiles": "crocodile dinosaur lizard snake turtle",
  "small_mammals": "hamster mouse rabbit shrew squirrel",
  "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
  "vehicles_1": "bicycle bus motorcycle pickup_truck train",
  "vehicles_2": "lawn_mower rocket streetcar tank tractor",
}
"""The five classes of each superclass of CIFAR-100."""

CIFAR_FS = {
  "val": """
    beaver beetle butterfly camel cattle crab crocodile flatfish lamp maple_tree
    motorcycle otter sea shark television tractor
  """,
  "test": """
    baby bed bicycle chimpanzee fox leopard man pickup_truck plain poppy rocket rose
    snail sweet_pepper table telephone wardrobe whale woman worm
  """,
}
"""The classes of CIFAR-100 that CIFAR-FS validates and tests on."""

CUB = """
  Black_footed_Albatross:60 Laysan_Albatross:60 Sooty_Albatross:58
  Groove_billed_Ani:60 Crested_Auklet:44 Least_Auklet:41 Parakeet_Auklet:53
  Rhinoceros_Auklet:48 Brewer_Blackbird:59 Red_winged_Blackbird:60 Rusty_Blackbird:60
  Yellow_headed_Blackbird:56 Bobolink:60 Indigo_Bunting:60 Lazuli_Bunting:58
  Painted_Bunting:58 Cardinal:57 Spotted_Catbird:45 Gray_Catbird:59
  Yellow_breasted_Chat:59 Eastern_Towhee:60 Chuck_will_Widow:56 Brandt_Cormorant:59
  Red_faced_Cormorant:52 Pelagic_Cormorant:60 Bronzed_Cowbird:60 Shiny_Cowbird:60
  Brown_Creeper:59 American_Crow:60 Fish_Crow:60 Black_billed_Cuckoo:60
  Mangrove_Cuckoo:53 Yellow_billed_Cuckoo:59 Gray_crowned_Rosy_Finch:59
  Purple_Finch:60 Northern_Flicker:60 Acadian_Flycatcher:59
  Great_Crested_Flycatcher:60 Least_Flycatcher:59 Olive_sided_Flycatcher:60
  Scissor_tailed_Flycatcher:60 Vermilion_Flycatcher:60 Yellow_bellied_Flycatcher:59
  Frigatebird:60 Northern_Fulmar:60 Gadwall:60 American_Goldfinch:60
  European_Goldfinch:60 Boat_tailed_Grackle:60 Eared_Grebe:60 Horned_Grebe:60
  Pied_billed_Grebe:60 Western_Grebe:60 Blue_Grosbeak:60 Evening_Grosbeak:60
  Pine_Grosbeak:60 Rose_breasted_Grosbeak:60 Pigeon_Guillemot:58 California_Gull:60
  Glaucous_winged_Gull:59 Heermann_Gull:60 Herring_Gull:60 Ivory_Gull:60
  Ring_billed_Gull:60 Slaty_backed_Gull:50 Western_Gull:60 Anna_Hummingbird:60
  Ruby_throated_Hummingbird:60 Rufous_Hummingbird:60 Green_Violetear:60
  Long_tailed_Jaeger:60 Pomarine_Jaeger:60 Blue_Jay:60 Florida_Jay:60 Green_Jay:57
  Dark_eyed_Junco:60 Tropical_Kingbird:60 Gray_Kingbird:59 Belted_Kingfisher:60
  Green_Kingfisher:60 Pied_Kingfisher:60 Ringed_Kingfisher:60
  White_breasted_Kingfisher:60 Red_legged_Kittiwake:53 Horned_Lark:60 Pacific_Loon:60
  Mallard:60 Western_Meadowlark:60 Hooded_Merganser:60 Red_breasted_Merganser:60
  Mockingbird:60 Nighthawk:60 Clark_Nutcracker:60 White_breasted_Nuthatch:60
  Baltimore_Oriole:60 Hooded_Oriole:60 Orchard_Oriole:59 Scott_Oriole:60 Ovenbird:60
  Brown_Pelican:60 White_Pelican:50 Western_Wood_Pewee:60 Sayornis:60
  American_Pipit:60 Whip_poor_Will:49 Horned_Puffin:60 Common_Raven:59
  White_necked_Raven:60 American_Redstart:60 Geococcyx:60 Loggerhead_Shrike:60
  Great_Grey_Shrike:60 Baird_Sparrow:50 Black_throated_Sparrow:60 Brewer_Sparrow:59
  Chipping_Sparrow:60 Clay_colored_Sparrow:59 House_Sparrow:60 Field_Sparrow:59
  Fox_Sparrow:60 Grasshopper_Sparrow:60 Harris_Sparrow:60 Henslow_Sparrow:60
  Le_Conte_Sparrow:59 Lincoln_Sparrow:59 Nelson_Sharp_tailed_Sparrow:59
  Savannah_Sparrow:60 Seaside_Sparrow:60 Song_Sparrow:60 Tree_Sparrow:60
  Vesper_Sparrow:60 White_crowned_Sparrow:60 White_throated_Sparrow:60
  Cape_Glossy_Starling:60 Bank_Swallow:59 Barn_Swallow:60 Cliff_Swallow:60
  Tree_Swallow:60 Scarlet_Tanager:60 Summer_Tanager:60 Artic_Tern:58 Black_Tern:60
  Caspian_Tern:60 Common_Tern:60 Elegant_Tern:60 Forsters_Tern:60 Least_Tern:60
  Green_tailed_Towhee:60 Brown_Thrasher:59 Sage_Thrasher:60 Black_capped_Vireo:51
  Blue_headed_Vireo:60 Philadelphia_Vireo:59 Red_eyed_Vireo:60 Warbling_Vireo:60
  White_eyed_Vireo:60 Yellow_throated_Vireo:59 Bay_breasted_Warbler:60
  Black_and_white_Warbler:60 Black_throated_Blue_Warbler:59 Blue_winged_Warbler:60
  Canada_Warbler:60 Cape_May_Warbler:60 Cerulean_Warbler:60 Chestnut_sided_Warbler:60
  Golden_winged_Warbler:59 Hooded_Warbler:60 Kentucky_Warbler:59 Magnolia_Warbler:59
  Mourning_Warbler:60 Myrtle_Warbler:60 Nashville_Warbler:60 Orange_crowned_Warbler:60
  Palm_Warbler:60 Pine_Warbler:60 Prairie_Warbler:60 Prothonotary_Warbler:60
  Swainson_Warbler:56 Tennessee_Warbler:59 Wilson_Warbler:60 Worm_eating_Warbler:59
  Yellow_Warbler:60 Northern_Waterthrush:60 Louisiana_Waterthrush:60
  Bohemian_Waxwing:60 Cedar_Waxwing:60 American_Three_toed_Woodpecker:50
  Pileated_Woodpecker:60 Red_bellied_Woodpecker:60 Red_cockaded_Woodpecker:58
  Red_headed_Woodpecker:60 Downy_Woodpecker:60 Bewick_Wren:60 Cactus_Wren:60
  Carolina_Wren:60 House_Wren:59 Marsh_Wren:60 Rock_Wren:60 Winter_Wren:60
  Common_Yellowthroat:60
"""
"""Species of CUB-200-2011 in the order of their numbers, with numbers of images."""
